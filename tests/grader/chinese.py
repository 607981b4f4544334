"""The words of HANDOUT.zh.md, and the tasks; english.py has the same names with the same {fields}."""
import re
import textwrap

FILE = "HANDOUT.zh.md"
COMMA, SEMICOLON = "、", "；"


def joined(text):
    """A text without its indentation and without line breaks inside Chinese, which would show as spaces."""
    inside = r"(?<=[^\x00-\x7f])\n(?=[^\x00-\x7f])|(?<=[、，；。])\n(?=\S)"
    return re.sub(inside, "", textwrap.dedent(text).strip())


PAGE = joined("""
[English](HANDOUT.md)

# 作业：从零实现 RLHF

共 {n} 题，{points} 分（评分程序：{version}）。这个文件夹是一个
完整的 RLHF 程序，只是下面这些函数还只有一句
`raise NotImplementedError`，要由你来写。函数的文档字符串就是对它的
要求：收到什么，返回什么，有必要时再举一个例子；签名和文档字符串
都保持原样。`README.md`（[中文版](docs/zh/README.md)）介绍整个程序，
也说明怎样安装它需要的东西。

**这里有什么。** `model.py`、`data.py` 和六个脚本（每个阶段一个）
是主线，要你写的函数全在这些文件里。`world/`（谁来说话、谁来评判）
和 `lab/`（怎样保存、测量和查看一次运行）是完整的；不读它们，
也能写出每一个函数。

**怎样做。** 按下面的次序做。每道题都有一条命令，运行给它评分的
测试，几秒钟就有结果。有先修题的题，要等先修题都做完
才能测试。{needed}{others}程序里的函数全部写完之后，
`python -m pytest` 和 `python train_ppo.py --config tiny`
就都能运行了。

**点拨、书面题、实验。** 点拨是折叠起来的：先自己试二十分钟。
书面题用文字回答，写在 `ANSWERS.md` 里，每题 4 分，由老师给，
与这里的分数分开算。实验放在最后，因为命令缺什么就先训练什么
（与模型对话的命令不训练）：预训练和 SFT 的实验要先做完第 1 至 3 题，
用 `--rankings rankings` 的奖励模型还要加上第 4 题，PPO 和通常的
奖励模型要除 5 和 11 以外的全部，拒绝采样再加上第 11 题。还没有写的
函数，会让命令以 `NotImplementedError` 和它那道题的题号结束。

**怎样交。** 交整个文件夹。评分时只读下表列出的文件，而且只取其中
要求写的函数，以及它们用到的、你自己写的函数、常量和导入；
后面这些必须与用到它们的函数在同一个文件里。在别处所作的改动，
包括对测试的改动，一概不算。

**可以写什么。** 只写做计算的函数。可以导入的模块有：{imports}。
类、`global`、以下划线开头的属性，以及打开文件、启动程序或深入
Python 内部的东西（`open`、`exec`、`getattr` 等）都会被拒绝，
并有一句话指出是哪一行；`type`、`hasattr` 和 `str.format` 哪怕用得无害，
也同样会被拒绝（`isinstance` 和 f-string 可以用）。张量、模块和优化器能做的事
（包括 `model.eval()`）都可以用，我们文件里的函数也可以；NumPy 不行。

**怎样评分。** 用这里列出的测试，其中有些可能换成别的数和别的大小。
每道题单独评分：这道题用你写的函数，其余各题都用正确的版本，
所以一个错误只扣一次分。一个测试的所有情形都通过，才算通过。
标为*核心*的测试必须先通过：只要有一个
不通过，这道题就不得分。核心都通过之后，得分是这道题的分值乘以
通过的测试所占的份额，按权重计。让程序退出的函数，或者自己永远
不结束的函数，只影响它那道题，不影响别的题；Python 读不懂的函数
也是这样。

| 题目 | 分值 | 所在文件 |
|---|---|---|
{rows}

{sections}
""") + "\n"
GIVEN = "下面几道题的解答已经给出：{problems}。"
NOT_GIVEN = ("这里的题要用到下面几道题，它们的解答没有给出，"
             "请用你自己的：{problems}。")
OTHERS = "下面几道题的函数也是空着的，但不属于这份作业：{problems}。"
ANSWERS = "# 书面题的回答"
NOTE = joined("""
> 这是一份作业：有些函数还空着，需要它们的命令暂时不能用。请从
> [HANDOUT.zh.md](../../HANDOUT.zh.md) 开始。
""") + "\n\n"

SECTION = """## {number}. {title}（{points} 分）

{task}

{lesson}

- 要写的函数：{functions}
- 先修题：{needs}
- 核心：{core}
- 测试（{tests}）：

```
python -m pytest {nodes}
```"""
WHERE = "`{file}` 的 {functions}"
PROBLEM = "{number}（{title}）"
NONE = "无"
EQUAL = "{n} 个，权重相同"
UNEQUAL = "{n} 个，{heavy}"
HEAVY = "`{test}` 算 {weight} 份"

TASKS = {
    1: joined("""
        取模型给真正出现的下一个词元的概率，求对数，变号，再对所有行的
        所有位置求平均。目标已经错开一位了。
        """),
    2: joined("""
        把提示和回答首尾相接，错开一位，再标出哪些目标属于回答，
        EOS 也算在内；`pad_rows` 是现成的。然后是损失：与第 1 题一样，
        但只算标出的目标，再除以它们的个数。
        """),
    3: joined("""
        逐个词元地采样：取一行中最后一个真正的词元处的 logit，除以温度
        （`log_softmax`），得到一个分布；从中抽取一个词元（用 `draw`；
        温度为 0 时，它取最可能的那个），记下它的对数概率，把它写在
        这一行自己的末尾；一行遇到 EOS 就停。不用缓存、每个词元都做
        一次完整的前向计算，也是对的；想要快，可以用 `GPT.hidden`，
        它接受缓存。
        """),
    4: joined("""
        较好的回答获胜的概率是 sigmoid(较好者的分数 - 较差者的分数 - 间隔)。
        损失是这个概率的对数变号；有软标签时，则是与给定概率的交叉熵；
        最后对所有回答对求平均。两个分数相差再远，损失也必须是有限的数。
        """),
    5: joined("""
        一条排序里的每一对都是一场比赛，平局也算一场（`data.py` 的
        `ranking_to_pairs` 会列出它们）。胜者得到 K 系数乘以实际结果与
        预期结果之差，败者失去同样多；然后才打下一场。
        """),
    6: joined("""
        每个词元都要付出 beta 乘以策略与参考模型的对数概率之差；
        最后一个真正的词元还会得到分数。不要改动传进来的参数。
        """),
    7: joined("""
        从最后一个词元算到第一个：意外等于奖励加上 gamma 乘以下一个价值，
        再减去这一个价值；优势等于意外加上 gamma lambda 乘以下一个优势。
        在最后一个真正的词元之后，价值和优势都是 0，不管填充里是什么。
        """),
    8: joined("""
        减去均值，再除以标准差，两者都只对真正的词元来算
        （`masked_mean` 是现成的）。
        """),
    9: joined("""
        比值是一个词元的新概率除以旧概率。目标是“比值乘优势”与
        “裁剪后的比值乘优势”中较小的一个，对真正的词元求平均；
        损失要往下降，所以还要变号。
        """),
    10: joined("""
        价值与回报之差的平方的一半。一个价值若离旧价值超过裁剪宽度，
        就把它挪回边界，再算一次误差，两个误差中取较大的。
        """),
    11: joined("""
        从 K 个回答中留下最好的那个。然后说明从 n 个里选值多少：
        对每个名次数一数，在 n 个回答的所有选法中，有多少种是这个名次的
        回答最好；再把回答按奖励排好，用这些数作权重。
        """),
    12: joined("""
        各步的编号与 `train_ppo.py` 开头的一致。`rollout`：1. 对每个提示
        采样一个回答；2. 用 `scorer.raw` 给回答打分，被截断的回答只在打分时
        补上一个 EOS（批次里不补）；再用 `whiten_scores` 把分数白化，均值和
        标准差用打分器自己的，`cfg.score_scale` 为 "batch" 时则用这个批次的；
        没有 EOS 的回答，分数改为负的 `cfg.eos_penalty`，它为 0 时则不改；
        然后，3. 减去 KL 的代价；4. 算优势，如果 `cfg.whiten_advantages` 要求，
        就把它白化（回报不白化）。所有这些都放进一个 `Batch`。

        `update`：5. 学 `cfg.ppo_epochs` 遍，每遍按新的次序分成小批次，
        次序由 torch 的随机数决定；每个小批次最多 `cfg.minibatch_size` 个回答，小批次的个数尽量少，
        大小最多相差一个（8 个回答，最多 5 个：4 和 4）。
        一个小批次又分成几部分，每部分 `cfg.micro_batch_size` 个回答（`Batch.take`）；各部分的梯度加起来，
        如果 `cfg.ptx_coef` 不为 0，再加上 `add_ptx_gradient` 的梯度；
        然后对 `agent.networks` 里的每个网络单独裁剪梯度，使范数不超过
        `cfg.clip_grad`（0：不裁剪）；最后优化器走一步。返回的是每一步一个字典，
        里面有 `ppo_loss` 给出的各个数（已对各部分求和）和 `grad_norm`，
        后者是策略的梯度在裁剪之前的范数。

        `ppo_loss`：一个部分的策略损失，加上 `agent.value_coef` 乘以价值损失。
        用上你前面写的函数；`Agent`、`Batch`、`join`、`response_hidden`、
        `token_logprobs` 和 `data.py` 里的函数都是现成的。最后一个测试
        让你的循环去找一个已经精确知道的最优解。
        """),
}

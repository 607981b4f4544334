"""Comparisons that cost no annotator: a demonstration against damaged copies of itself."""
import random
import re


def sentences(text):
    """The sentences of a text. Example: "A b. C d" -> ["A b.", "C d"]; where there are no words: []."""
    found = (s.strip() for s in re.findall(r"[^.!?]+[.!?]*", text))
    return [s for s in found if s]


def damaged_copies(demonstrations, n, seed):
    """n comparisons that need no annotator: a demonstration against copies of it, each damaged in one way. In
    a copy a sentence from elsewhere replaces one of its own or comes on top, a sentence is said twice, or has
    the end of another. (The idea: preference-model pretraining, Askell et al. 2021.)

    demonstrations: rows {"prompt", "response"}. Returns rankings {"prompt", "responses", "tiers"}, fewer
    than n where nothing could be damaged: the demonstration is best, its copies tie.
    """
    rng, rows = random.Random(seed), []
    usable = [d for d in demonstrations if sentences(d["response"])]
    for d in rng.choices(usable, k=n) if usable else []:
        own, other = sentences(d["response"]), sentences(rng.choice(usable)["response"])
        copies = damage(own, other, rng)
        responses = list(dict.fromkeys(" ".join(part) for part in [own, *copies]))
        if len(responses) > 1:
            tiers = [[0], list(range(1, len(responses)))]
            rows.append({"prompt": d["prompt"], "responses": responses, "tiers": tiers})
    return rows


def damage(own, other, rng):
    """Sentences -> four damaged versions of them. other: sentences of another answer."""
    i = rng.randrange(len(own))
    foreign = rng.choice(other)
    words, ending = own[i].split(), foreign.split()
    mixed = " ".join(words[: rng.randint(1, len(words))] + ending[rng.randint(1, len(ending)) :])
    again = rng.randint(i + 1, len(own))
    return [own[:i] + [foreign] + own[i + 1 :],
            own[: i + 1] + [foreign] + own[i + 1 :],
            own[:again] + [own[i]] + own[again:],
            own[:i] + [mixed] + own[i + 1 :]]

"""The file format safetensors: eight bytes with the length of a header, the header, and the numbers.

The header is JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}, its offsets
counted from its own end. Nothing in such a file can run, and it takes sixty lines to read and to write.
"""
import json
import math

import torch

from data import UserError

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
         "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
         "BOOL": torch.bool}
NAMES = {dtype: name for name, dtype in TYPES.items()}
LONGEST = 100_000_000  # bytes of a header, the format's own limit


def read_tensors(path):
    """{name: tensor} of a file. Raises UserError where it is damaged; nothing is read that its header says
    lies elsewhere than in the file."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LONGEST, size - 8):
            raise damaged(path, "it ends before its header does")
        entries = read_header(path, file.read(length), size - 8 - length)
        return {name: read_tensor(file, entry) for name, entry in entries.items()}


def read_tensor(file, entry):
    """The next tensor of an open file."""
    dtype, n = TYPES[entry["dtype"]], math.prod(entry["shape"])
    if n == 0:
        return torch.empty(entry["shape"], dtype=dtype)
    content = bytearray(file.read(n * dtype.itemsize))  # a tensor may be written to
    return torch.frombuffer(content, dtype=dtype).reshape(entry["shape"])


def read_header(path, text, size):
    """{name: entry} in the order of the data, which begin at 0, follow each other and end at `size`."""
    try:
        entries = json.loads(text.decode(), object_pairs_hook=each_once)
        entries.pop("__metadata__", None)
        ordered = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
        end = 0
        for name, entry in ordered:
            if entry["dtype"] not in TYPES:
                raise UserError(f"{path}: {name} is of the type {str(entry['dtype'])[:20]}, which is not "
                                f"read here; expected one of {', '.join(TYPES)}")
            if not all(type(n) is int and n >= 0 for n in entry["shape"]):
                raise ValueError(f"{name} has no shape")
            start, bytes_of_it = end, math.prod(entry["shape"]) * TYPES[entry["dtype"]].itemsize
            end += bytes_of_it
            if entry["data_offsets"] != [start, end]:
                raise ValueError(f"{name} does not lie where its shape puts it")
        if end != size:
            raise ValueError(f"its tensors take {end:,} bytes and it holds {size:,}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = str(error) if type(error) is ValueError else "its header is not that of safetensors"
        raise damaged(path, what) from None
    return dict(ordered)


def each_once(pairs):
    """A JSON object as a dict. Raises ValueError where a name comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header says something twice")
    return found


def damaged(path, what):
    return UserError(f"{path} is damaged ({what}): copy or download it again")


def write_tensors(file, tensors):
    """Write {name: tensor} into an open file."""
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, x in tensors.items():
        start, end = end, end + x.numel() * x.dtype.itemsize
        entries[name] = {"dtype": NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)  # the numbers begin at a multiple of eight
    file.write(len(header).to_bytes(8, "little") + header)
    for x in tensors.values():
        file.write(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

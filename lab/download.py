"""GPT-2's public files, fetched once into the folder where torch keeps what it has fetched."""
import os
import socket
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch

from data import UserError
from lab import parallel

# The files, and the sha256 of those that never change.
FILES = {"config.json": None,
         "model.safetensors": "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
         "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
         "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"}
SECONDS = 10  # that a server may be silent


def gpt2_folder():
    """The folder with GPT-2's shape and weights, fetched where they are missing. Raises UserError as fetch
    does."""
    for name in ("config.json", "model.safetensors"):
        parallel.first_then_others(fetch, name)
    return fetch(name).parent


def fetch(name):
    """Path of one of GPT-2's public files. HF_ENDPOINT names another server than Hugging Face's. Raises
    UserError within seconds where it cannot be had."""
    folder = Path(torch.hub.get_dir()) / "checkpoints" / "gpt2"
    path = folder / name
    if path.is_file():
        return path
    server = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    print(f"{name} of GPT-2 from {server} into {folder}:", flush=True)
    usual = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)  # torch sets none
    try:
        folder.mkdir(parents=True, exist_ok=True)
        url = f"{server.rstrip('/')}/openai-community/gpt2/resolve/main/{name}"
        torch.hub.download_url_to_file(url, str(path), FILES[name])
    except (OSError, HTTPException, ValueError, RuntimeError) as error:
        why = error.reason if type(error) is URLError else error
        why = " ".join(str(why).split())[:100]
        raise UserError(f"{name} of GPT-2 cannot be fetched from {server} ({why}): go online, set "
                        "HF_ENDPOINT to a mirror, or name a folder that has GPT-2's config.json, "
                        "model.safetensors, vocab.json and merges.txt with train_pretrain.py --init FOLDER"
                        ) from None
    finally:
        socket.setdefaulttimeout(usual)
    return path

"""The blocks of README.md, a scratch clone to run them in, and a small stand-in for the default model.

A ```console block holds commands after "$ " and what they print; all of them run in one shell, in order.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
EXAMPLES = ROOT / "memtoken_cli" / "assets" / "examples"
MINUTES = 30


@dataclass
class Block:
    """A fenced block: its language, the line where its text begins, and the text."""

    language: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"README.md:{self.line}"


@dataclass
class Command:
    """One command, what README.md says that it prints, and then what it did."""

    block: Block
    text: str
    expected: list[str] = field(default_factory=list)
    printed: str = ""

    @property
    def needs_setup(self) -> bool:
        return "scripts/" in self.text or ".venv/" in self.text

    def __str__(self) -> str:
        return f"{self.block}: $ {self.text}"


def blocks(path: Path = README) -> Iterator[Block]:
    fence: Block | None = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.startswith("```"):
            if fence:
                fence.text += line + "\n"
        elif fence:
            yield fence
            fence = None
        else:
            fence = Block(line[3:], number + 1, "")
    assert fence is None, f"{path}: a block is open at its end"


def commands() -> list[Command]:
    """Everything to run, in order. A python block is a program, the ```text block after it its output."""
    found: list[Command] = []
    for block in blocks():
        lines = block.text.splitlines()
        if block.language == "python":
            found.append(Command(block, f"python block_{block.line}.py"))
        elif block.language == "text":
            found[-1].expected = lines
        elif block.language == "console" and lines[0].startswith("$ scripts/quickstart"):
            found.append(Command(block, lines[0][2:], lines[1:]))  # it prints commands itself
        elif block.language == "console":
            for line in lines:
                if line.startswith("$ "):
                    found.append(Command(block, line[2:]))
                else:
                    found[-1].expected.append(line)
    return found


def rewrite(done: list[Command], path: Path = README) -> None:
    """Put what was printed where the README says what is printed."""
    lines = path.read_text().splitlines()
    for command in reversed(done):
        place = command.block.line - 1
        if command.block.language == "python":
            place += len(command.block.text.splitlines()) + 3  # to the block after it
        else:
            place = lines.index(f"$ {command.text}", place) + 1
        lines[place : place + len(command.expected)] = [s.rstrip() for s in command.printed.splitlines()]
    path.write_text("\n".join(lines) + "\n")


def is_set_up() -> bool:
    return subprocess.run([ROOT / "scripts" / "setup", "--check"], check=False).returncode == 0


def run(todo: list[Command], folder: Path, cache: Path | None) -> None:
    """Run the commands in one shell, in a folder that looks like a clone; fills in what each printed.

    cache: stands for the user's cache folder; None is the real one.
    """
    for entry in ROOT.iterdir():
        if entry.name not in (".git", "runs"):
            (folder / entry.name).symlink_to(entry)
    programs = folder / "bin"
    programs.mkdir()
    for name, line in (("python", ""), ("memtok", "-m memtoken_cli")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {line} "$@"\n')
        (programs / name).chmod(0o755)
    script = []
    for number, command in enumerate(todo):
        if command.block.language == "python":
            (folder / f"block_{command.block.line}.py").write_text(command.block.text)
        # braces keep what a command changes in the shell: its folder, its variables
        script.append(
            f"{{ {command.text}\n}} > {programs}/{number}.out 2>&1; echo $? > {programs}/{number}.rc"
        )
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": f"{folder}:{ROOT / 'tests' / 'toy_method'}",
        "MEMTOK_DEBUG": "",
    }
    if cache:
        environment["XDG_CACHE_HOME"] = str(cache)
    else:  # what a reader would see: with as many threads as torch likes
        environment = {name: x for name, x in environment.items() if not name.endswith("_NUM_THREADS")}
    shell = ["bash", "-c", "\n".join(script)]
    subprocess.run(
        shell, cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=60 * MINUTES
    )
    for number, command in enumerate(todo):
        command.printed = (programs / f"{number}.out").read_text()
        code = int((programs / f"{number}.rc").read_text())
        assert code == 0, f"{command}\nends with {code}:\n{command.printed}"


def stand_in(cache: Path) -> None:
    """A random model of two layers where memtok looks for the default model first.

    Its tokens are learned from the examples, so that prompts are about as long as the real model's.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    texts = [path.read_text() for path in sorted(EXAMPLES.iterdir()) if path.suffix != ".csv"]
    core.train_from_iterator(texts, trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=core.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    folder = cache / "memtok" / "models" / "smollm2-135m"
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>").save_pretrained(folder)
    (folder / "memtok.json").write_text("{}\n")


NUMBER = re.compile(r"-?\b\d[\d.]*(?:e[-+]?\d+)?\b|\b[0-9a-f]{16}\b")


def words(text: str) -> str:
    """The text without its numbers, digests and column widths."""
    return " ".join(re.sub("-{2,}", "--", NUMBER.sub("#", text)).split())

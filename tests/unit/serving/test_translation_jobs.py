"""The command `hyperadapter translate`: a pipe, files in many directions, and what it refuses."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hyperadapter.cli import cli
from hyperadapter.core.errors import CheckpointError, ConfigError, DataError, HyperAdapterError
from hyperadapter.core.files import read_json
from hyperadapter.evaluation.translate import Translator
from hyperadapter.serving.ctranslate2 import CTranslate2Translator
from hyperadapter.serving.ctranslate2_export import export_ctranslate2

TEXTS = ["Open the file", "", "Save the last image now", "page", "   ", "Close the old menu"]
Invoke = Callable[..., Any]


def lines_of(text: str) -> list[str]:
    return text.split("\n")[:-1]


@pytest.fixture
def run(tiny_run: Callable[..., Any]) -> Any:
    return tiny_run(evaluation={"max_length_ratio": 1.0})


def call(folder: Path, *options: str | Path, stdin: str | bytes = "") -> Any:
    """Calls the command; its errors are raised."""
    arguments = ["translate", "--run", folder, "--device", "cpu", *options]
    done = CliRunner().invoke(cli, list(map(str, arguments)), input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def pipe(run: Any) -> Invoke:
    """Translates from English to German through a pipe."""

    def invoke(*options: str | Path, stdin: str | bytes = "\n".join(TEXTS), **more: Any) -> Any:
        return call(run.run_dir, "--src", "en", "--tgt", "de", *options, stdin=stdin, **more)

    return invoke


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Text in three languages, the German one compressed."""
    for code, texts in {"en": TEXTS, "fr": TEXTS[:3]}.items():
        (tmp_path / f"{code}.txt").write_text("\n".join(texts), encoding="utf-8")
    (tmp_path / "de.txt").write_bytes(gzip.compress(b""))
    (tmp_path / "de.txt").rename(tmp_path / "de.txt.gz")
    return tmp_path


# -------------------------------------------------------------------------------------------- pipe


def test_a_line_comes_out_for_each_that_goes_in(pipe: Invoke, run: Any) -> None:
    done = pipe()
    assert done.exit_code == 0, done.output
    translator = Translator.from_run(run.run_dir)
    assert lines_of(done.stdout) == translator.translate(TEXTS, "en", "de")
    assert pipe(stdin="").stdout == ""
    assert pipe(stdin="\n\n").stdout == "\n\n"
    options = ("--batch-sentences", "1", "--beam-size", "1")  # chunks of 8
    many = pipe(*options, stdin="page\n" * 19)
    assert many.stdout == pipe(*options, stdin="page\n").stdout * 19


def test_n_best_as_a_table_and_as_json(pipe: Invoke, run: Any) -> None:
    options = ("--n-best", "2", "--beam-size", "3")
    evaluation = run.config.evaluation.model_copy(update={"beam_size": 3})
    found = Translator.from_run(run.run_dir).translate_n_best(
        TEXTS, "en", "de", evaluation, n_best=2
    )
    rows = [line.split("\t") for line in lines_of(pipe(*options).stdout)]
    assert rows == [
        [str(number), f"{score:.4f}", text]
        for number, translations in enumerate(found, 1)
        for text, score in translations
    ]
    assert [row[0] for row in rows if row[2]] == ["1", "1", "3", "3", "4", "4", "6", "6"]
    objects = [json.loads(line) for line in lines_of(pipe(*options, "--json").stdout)]
    assert [entry["src"] for entry in objects] == TEXTS
    assert [[t["text"] for t in entry["translations"]] for entry in objects] == [
        [text for text, _ in translations] for translations in found
    ]
    assert objects[0]["translations"][0]["score"] == pytest.approx(found[0][0].score, abs=1e-4)
    best = [line.split("\t") for line in lines_of(pipe("--scores").stdout)]
    assert [text for _, _, text in best] == lines_of(pipe().stdout)


def test_translations_begin_with_their_prefixes(pipe: Invoke, tmp_path: Path) -> None:
    prefixes = ["Öffne", "", "", "Blatt", "", "das"]
    path = tmp_path / "ende"
    path.write_text("\n".join(prefixes), encoding="utf-8")
    found = lines_of(pipe("--prefixes", path).stdout)
    assert all(
        text.startswith(p)
        for text, p, src in zip(found, prefixes, TEXTS, strict=True)
        if src.strip()
    )
    assert lines_of(pipe("--prefixes", tmp_path / "{src}{tgt}").stdout) == found
    with pytest.raises(DataError, match="--prefixes has 6 lines and the text has more"):
        pipe("--prefixes", path, stdin="page\n" * 7)


def test_draws_repeat_with_their_seed(pipe: Invoke) -> None:
    first, again, other, several = (
        lines_of(pipe("--sample", "--temperature", "2", "--top-k", "50", *more).stdout)
        for more in (("--seed", "3"), ("--seed", "3"), ("--seed", "4"), ("--n-best", "9"))
    )
    assert first == again != other
    assert [not text for text in first] == [not text.strip() for text in TEXTS]
    assert len(several) == 4 * 9 + 2


def test_a_run_that_draws_can_be_searched(tiny_run: Callable[..., Any]) -> None:
    settings = {"max_length_ratio": 1.0}
    text, pair = "\n".join(TEXTS), ("--src", "en", "--tgt", "de")
    searching = tiny_run(evaluation=settings)
    expected = call(searching.run_dir, *pair, stdin=text).stdout
    drawing = tiny_run(evaluation=settings | {"sampling": {"temperature": 2.0}})
    drawn = call(drawing.run_dir, *pair, stdin=text).stdout
    assert call(drawing.run_dir, *pair, "--sample", stdin=text).stdout == drawn != expected
    assert call(drawing.run_dir, *pair, "--no-sample", stdin=text).stdout == expected
    done = call(drawing.run_dir, *pair, "--no-sample", "--seed", "1")
    assert done.exit_code == 2
    assert "--seed is for --sample" in done.output


@pytest.mark.parametrize(("name", "value"), [("max_length_ratio", 0.5), ("max_length_extra", 1)])
def test_the_longest_output(pipe: Invoke, run: Any, name: str, value: float) -> None:
    found = lines_of(pipe(f"--{name.replace('_', '-')}", str(value)).stdout)
    shorter = run.config.evaluation.model_copy(update={name: value})
    assert found == Translator.from_run(run.run_dir).translate(TEXTS, "en", "de", shorter)
    assert found != lines_of(pipe().stdout)


def test_no_gpu(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"the device is cuda, but torch sees no GPU; choose cpu or auto"
    ):
        call(run.run_dir, "--src", "en", "--tgt", "de", "--device", "cuda", stdin="page\n")


def test_damaged_weights_are_found(pipe: Invoke, run: Any) -> None:
    path = run.run_dir / "checkpoints" / "step-00000100" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is not the file of its manifest; use another"):
        pipe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beam-size", "0"], "  --beam-size: .*greater than or equal to 1 .got 0"),
        (["--processes", "0"], "  --processes: .*greater than or equal to 1"),
        (["--length-penalty", "-1"], "  --length-penalty: "),
        (["--max-length-ratio", "0"], "  --max-length-ratio: "),
        (["--max-length-extra", "0"], "  --max-length-extra: "),
        (["--coverage-penalty", "-1"], "  --coverage-penalty: "),
        (["--no-repeat-ngram", "-1"], "  --no-repeat-ngram: "),
        (["--batch-sentences", "0"], "  --batch-sentences: "),
        (["--sample", "--temperature", "0"], "  --temperature: .*greater than 0"),
        (["--sample", "--top-k", "0"], "  --top-k: "),
        (["--sample", "--top-p", "1.5"], "  --top-p: "),
        (["--sample", "--seed", "-1"], "  --seed: "),
        (["--n-best", "9", "--beam-size", "2"], "n_best is 9, but a search with beam_size 2"),
        (["--tgt", "it"], "this run has no language 'it'; its languages are en, de, fr"),
        (["--tgt", "en"], "--src en and --tgt en are the same language"),
        (["--checkpoint", "7"], "'7' is neither newest"),
    ],
)
def test_what_cannot_be_is_said_before_the_model_is_loaded(
    pipe: Invoke, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr("hyperadapter.evaluation.translate.load_model", None)
    with pytest.raises(HyperAdapterError, match=message) as caught:
        pipe(*options)
    assert caught.value.exit_code == (1 if "neither" in message else 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-k", "5", "--seed", "1"], "--top-k, --seed is for --sample"),
        (["--input", "x"], "--input and --output belong together"),
        (["--overwrite"], "--overwrite is for --output"),
        (["--json", "--scores"], "--json has the scores"),
        (["--tgt", "de,fr"], "several directions need --input and --output"),
    ],
)
def test_options_that_do_not_go_together(pipe: Invoke, options: list[str], message: str) -> None:
    done = pipe(*options)
    assert done.exit_code == 2
    assert message in done.output


def test_a_line_that_is_not_utf_8_is_named(pipe: Invoke, folder: Path) -> None:
    with pytest.raises(DataError, match=r"stdin:2 is not UTF-8: byte 0xf6"):
        pipe(stdin=b"page\nsch\xf6n\n")
    (folder / "bad.txt").write_bytes(b"page\nsch\xf6n\n")
    with pytest.raises(DataError, match=r"bad.txt:2 is not UTF-8"):
        pipe("--input", folder / "bad.txt", "--output", folder / "out.txt")
    assert not list(folder.glob("out.txt*"))


def test_a_bundle_translates_too(make_bundle: Callable[..., Any]) -> None:
    run, bundle = make_bundle("hyper")
    arguments = ("--src", "en", "--tgt", "de")
    found = call(bundle, *arguments, stdin="\n".join(TEXTS)).stdout
    assert found == call(run.run_dir, *arguments, stdin="\n".join(TEXTS)).stdout
    with pytest.raises(ConfigError, match=r"this bundle does not translate de-fr.*are en-de, "):
        call(bundle, "--src", "de", "--tgt", "fr")
    done = call(bundle, *arguments, "--checkpoint", "best")
    assert done.exit_code == 2
    assert "is a bundle, which has no checkpoints to choose from" in done.output


def test_a_ctranslate2_folder_translates_too(
    run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "ct2"
    export_ctranslate2(run.run_dir, out, directions=["en-de"])
    pair = ("--src", "en", "--tgt", "de")
    found = call(out, *pair, "--beam-size", "2", "--scores", stdin="\n".join(TEXTS)).stdout
    model = CTranslate2Translator(out, "cpu")
    evaluation = model.evaluation.model_copy(update={"beam_size": 2})
    expected = model.translate_n_best(TEXTS, "en", "de", evaluation)
    assert [line.split("\t")[1:] for line in lines_of(found)] == [
        [f"{score:.4f}", text] for [(text, score)] in expected
    ]
    assert call(out, *files(folder, src="en", tgt="de")).exit_code == 0
    assert len(lines_of((folder / "out" / "en-de.txt").read_text(encoding="utf-8"))) == len(TEXTS)
    done = call(out, *pair, "--checkpoint", "best")
    assert done.exit_code == 2
    assert "ct2 is a CTranslate2 folder, which has no checkpoints to choose from" in done.output
    monkeypatch.setattr("hyperadapter.serving.ctranslate2.import_ctranslate2", None)  # not loaded
    prefixes = folder / "en.txt"
    for options, message in (
        (["--prefixes", prefixes], "prefixes are given, which .* leave them out, or use a bundle"),
        (["--sample"], "sampling is .* CTranslate2 does not offer"),
        (["--n-best", "9"], "n_best is 9, but a search with beam_size 4 finds 1 to 4"),
        (["--tgt", "fr"], "this CTranslate2 folder has no language 'fr'; its languages are en, de"),
        (["--src", "de", "--tgt", "en"], "this CTranslate2 folder does not translate de-en"),
    ):
        with pytest.raises(ConfigError, match=message):
            call(out, *pair, *options, stdin="page\n")
    (out / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json is missing, or not the one that"):
        call(out, *pair)


# ------------------------------------------------------------------------------------------- files


def files(folder: Path, *options: str, src: str = "en,fr", tgt: str = "en,de") -> Sequence[str]:
    patterns = ("--input", f"{folder}/{{src}}.txt", "--output", f"{folder}/out/{{src}}-{{tgt}}.txt")
    return ("--src", src, "--tgt", tgt, *patterns, *options)


def test_every_source_into_every_other_language(
    run: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert call(run.run_dir, *files(folder)).exit_code == 0
    translator = Translator.from_run(run.run_dir)
    texts = {"en": TEXTS, "fr": TEXTS[:3]}
    for src, tgt in (("en", "de"), ("fr", "en"), ("fr", "de")):
        found = lines_of((folder / "out" / f"{src}-{tgt}.txt").read_text(encoding="utf-8"))
        assert found == translator.translate(texts[src], src, tgt)
    assert len(list((folder / "out").iterdir())) == 6
    assert "left out, being one language: en-en" in caplog.messages
    assert any(re.match(r"12 sentences in .* on 1 process$", text) for text in caplog.messages)
    caplog.clear()
    call(run.run_dir, *files(folder))
    assert sum("is there already, from the same text" in text for text in caplog.messages) == 3
    with pytest.raises(
        DataError, match=r"en-de.txt is there .* with beam_size 4 \(now 1\); .*--over"
    ):
        call(run.run_dir, *files(folder, "--beam-size", "1"))
    assert call(run.run_dir, *files(folder, "--beam-size", "1", "--overwrite")).exit_code == 0
    manifest = read_json(folder / "out" / "en-de.txt.json")
    assert (manifest["made_from"]["beam_size"], manifest["lines"], manifest["done"]) == (1, 6, True)
    run.save(step=200, seed=2)
    with pytest.raises(DataError, match="it was made with weights '"):
        call(run.run_dir, *files(folder, "--beam-size", "1"))


def test_compressed_and_empty_text(run: Any, folder: Path) -> None:
    options = ("--input", f"{folder}/de.txt.gz", "--output", f"{folder}/out.txt")
    assert call(run.run_dir, "--src", "de", "--tgt", "en", *options).exit_code == 0
    assert (folder / "out.txt").read_bytes() == b""


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("{src}.out", r"--output .* is one file for en-de and en-fr; write \{src\} and \{tgt\}"),
        ("{src}.txt", r"is one file for en-de and en-fr"),
        ("{tgt}.txt", "would write .*de.txt, which is a file that is read; choose another"),
        ("{src}/../{tgt}.txt", "would write .*de.txt, which is a file that is read"),
    ],
)
def test_outputs_must_be_files_of_their_own(
    run: Any, folder: Path, output: str, message: str
) -> None:
    options = ("--input", f"{folder}/{{tgt}}.txt", "--output", f"{folder}/{output}")
    with pytest.raises(ConfigError, match=message):
        call(run.run_dir, "--src", "en", "--tgt", "de,fr", *options)


@pytest.mark.parametrize(
    ("pattern", "output", "written"),
    [
        ("{src}.txt", "{tgt}.txt", "fr.txt"),  # de-fr would write what fr-de reads
        ("{src}.json", "{src}", "de.json"),
        ("{src}.part", "{src}", "de.part"),
    ],
)
@pytest.mark.parametrize("read", ["--input", "--prefixes"])
def test_no_file_that_any_direction_reads_is_written(
    run: Any, tmp_path: Path, pattern: str, output: str, written: str, read: str
) -> None:
    contents = {f"{tmp_path}/{pattern.format(src=code)}": f"{code}\n" for code in ("de", "fr")}
    contents[f"{tmp_path}/x"] = "page\n"
    for name, text in contents.items():
        Path(name).write_text(text, encoding="utf-8")
    texts = ("--input", f"{tmp_path}/x") if read == "--prefixes" else ()
    names = (*texts, read, f"{tmp_path}/{pattern}", "--output", f"{tmp_path}/{output}")
    with pytest.raises(ConfigError, match=f"would write .*/{written}, which is a file that is"):
        call(run.run_dir, "--src", "de,fr", "--tgt", "de,fr", *names, "--overwrite")
    for name, text in contents.items():
        assert Path(name).read_text(encoding="utf-8") == text


def test_a_run_goes_on_with_smaller_batches(run: Any, folder: Path) -> None:
    options = files(folder, src="en", tgt="de")
    assert call(run.run_dir, *options, "--batch-sentences", "4").exit_code == 0
    manifest = folder / "out" / "en-de.txt.json"
    before = manifest.stat().st_mtime_ns
    assert call(run.run_dir, *options, "--batch-sentences", "2").exit_code == 0
    assert manifest.stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"it was made with max_length_extra 3 \(now 9\); "):
        call(run.run_dir, *options, "--max-length-extra", "9")


def test_prefixes_of_files_are_counted_first(run: Any, folder: Path) -> None:
    with pytest.raises(DataError, match=r"fr.txt has 3 lines but .*en.txt has 6; give one prefix"):
        call(run.run_dir, *files(folder, "--prefixes", f"{folder}/fr.txt"))


def test_a_killed_process_is_gone_on_with(run: Any, folder: Path) -> None:
    lines = [f"Open the {word} page {number}" for number in range(60) for word in ("old", "new")]
    (folder / "en.txt").write_text("\n".join(lines), encoding="utf-8")
    options = files(folder, "--batch-sentences", "2", "--beam-size", "1", src="en", tgt="de")
    command = [sys.executable, "-m", "hyperadapter", "translate", "--run", str(run.run_dir)]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE)
    manifest, part = (folder / "out" / f"en-de.txt.{end}" for end in ("json", "part"))
    try:
        deadline = time.monotonic() + 120
        while not (manifest.exists() and read_json(manifest)["lines"] >= 16):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    left = read_json(manifest)
    assert 16 <= left["lines"] < len(lines)
    assert not left["done"]
    whole = part.read_bytes()[: left["bytes"]]
    assert call(run.run_dir, *options).exit_code == 0
    found = (folder / "out" / "en-de.txt").read_bytes()
    assert found.startswith(whole)
    greedy = run.config.evaluation.model_copy(update={"beam_size": 1})
    expected = Translator.from_run(run.run_dir).translate(lines, "en", "de", greedy)
    assert lines_of(found.decode()) == expected

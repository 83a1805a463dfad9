"""The model card: what a shared model is, how it was made, how good it is, written from the record of its run.

Everything in it was read from the run folder (config.yaml, environment.json, summary.json and other results, metrics,
pictures); what the run did not record is said to be missing, not guessed.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from statistics import fmean, stdev
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

from mi_ml_gen import __version__
from mi_ml_gen.core import provenance, runs
from mi_ml_gen.core.errors import CorruptCheckpointError
from mi_ml_gen.core.files import read_with_hash
from mi_ml_gen.core.texts import TextError, parse_json
from mi_ml_gen.report.text import markdown, one_line

CITATIONS = {
    "serez2025mutual": """\
@article{serez2025mutual,
  title   = {A Mutual Information Perspective on Multiple Latent Variable Generative Models for Positive View
             Generation},
  author  = {Serez, Dario and Cristani, Marco and Del Bue, Alessio and Murino, Vittorio and Morerio, Pietro},
  journal = {Transactions on Machine Learning Research},
  year    = {2025},
  url     = {https://openreview.net/forum?id=uaj8ZL2PtK}
}""",
    "livne2019mim": """\
@article{livne2019mim,
  title   = {{MIM}: Mutual Information Machine},
  author  = {Livne, Micha and Swersky, Kevin and Fleet, David J.},
  journal = {arXiv preprint arXiv:1910.03175},
  year    = {2019}
}""",
}
PICTURES = {
    "selected": "anchors, and below each its positive by the selected walker",
    "samples": "samples",
    "strength": "along the length of the perturbation",
    "views": "views that it was trained on, each above its partner",
    "reconstructions": "data and reconstructions",
    "confusion": "what is taken for what",
    "curves": "the course of training",
}
"""What is shown, by the beginnings of names, the more telling first."""
WORDS = {
    "infonce": "InfoNCE",
    "chance_infonce": "InfoNCE at chance",
    "bound_nats": "mutual information of a pair that the critic finds, in nats",
    "bound_verdict": "verdict on what the critic finds",
    "bound_verdict_because": "this verdict because",
    "ceiling_nats": "the most that this bound can show, in nats",
    "delta": "delta, the length of the perturbation",
    "independent_delta": "delta between independent draws",
    "n_candidates": "candidates of InfoNCE",
    "trained_samples": "samples trained on",
    "selected_samples": "samples trained on, of the selected model",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
}
"""Names of figures in results and metrics that say too little."""
MAX_PICTURES = 3
MAX_PICTURE_BYTES = 4 << 20
MAX_RESULT_BYTES = 1 << 20
NEAR_STEPS = 32
"""Rows of metrics so near to the selected model count for its figures, as they do in its selection."""
INTERVALS = ("_interval_95", "_interval", "_ci")
SPREADS = {"_standard_error": "standard error", "_std_error": "standard error", "_std": "standard deviation"}
DATA_KEYS = ("data_path", "dataset", "data")
NO_FIGURES = ("step", "epoch", "samples", "lr")


class Figure(NamedTuple):
    """A number of a card, with its interval or spread in words ("" where the run gives none)."""

    name: str
    value: float
    interval: str = ""


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says of itself."""

    path: Path
    settings: dict[str, Any]
    starts: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    results: dict[str, Any]
    """By the name of their JSON file."""
    card: str
    """The text of card.md, where the run wrote one."""

    @classmethod
    def read(cls, path: str | Path) -> RunRecord:
        """Raises UsageError for a folder that is no run's, CorruptCheckpointError for damaged settings or results.

        A folder of one of several seeds has its settings in the folder above.
        """
        path = Path(path)
        card = path / "card.md"
        is_member = not (path / "config.yaml").exists() and (path.parent / "config.yaml").exists()
        whole = path.parent if is_member else path
        return cls(
            path,
            runs.read_config(whole),
            provenance.read(whole),
            runs.read_metrics(path, whole=True),
            dict(_results(path)),
            card.read_text(encoding="utf-8") if card.is_file() else "",
        )


def _results(path: Path) -> Iterator[tuple[str, Any]]:
    """The JSON files in a run folder that hold its results; descriptions of weights are none."""
    for file in sorted(path.glob("*.json")):
        if file.name == provenance.NAME or file.stat().st_size > MAX_RESULT_BYTES:
            continue
        try:
            content = parse_json(read_with_hash(file, hash_required=False))
        except TextError as error:
            raise CorruptCheckpointError(f"{file}: damaged: {error}") from None
        if isinstance(content, dict) and "format" not in content:
            yield file.stem, content
    table = path / "results.csv"  # of a name and a value a line
    if table.is_file() and table.stat().st_size <= MAX_RESULT_BYTES:
        lines = read_with_hash(table, hash_required=False).decode("utf-8", "replace").splitlines()
        rows = [row for row in csv.reader(lines) if len(row) == 2 and _is_text_number(row[1])]
        yield "results", {name: float(value) for name, value in rows}


# --- figures ------------------------------------------------------------------------------------------------


def figures(run: RunRecord) -> list[Figure]:
    """The numbers that a run came to: those of its JSON files, and its metrics around the selected model."""
    found = [figure for name, content in run.results.items() for figure in _flat(content, ())]
    samples = run.results.get("summary", {}).get("selected_samples")
    return found + _near(run.rows, samples) if isinstance(samples, int) else found or _last(run.rows)


def _flat(content: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[Figure]:
    """The numbers of a nested mapping; one beside them of the same name and "_interval" or the like is its spread."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*above, key)) if len(above) < 3 else ()
        elif _is_number(value) and not _belongs_to_another(key, content):
            yield Figure(_words(*above, key), value, _interval(key, content))


def _interval(key: str, content: Mapping[str, Any]) -> str:
    for suffix in INTERVALS:
        bounds = content.get(key + suffix)
        if isinstance(bounds, Sequence) and len(bounds) == 2 and all(map(_is_number, bounds)):
            level = "95%: " if suffix.endswith("95") else ""
            return f"{level}{number(bounds[0])} to {number(bounds[1])}"
    for suffix, words in SPREADS.items():
        if _is_number(content.get(key + suffix)):
            return f"± {number(content[key + suffix])} ({words})"
    return ""


def _belongs_to_another(key: str, content: Mapping[str, Any]) -> bool:
    return any(key.endswith(suffix) and key.removesuffix(suffix) in content for suffix in SPREADS)


def _near(rows: Sequence[Mapping[str, Any]], samples: int) -> list[Figure]:
    """Mean and spread of each metric over the rows around the selected model."""
    counted = [row for row in rows if isinstance(row.get("samples"), int)]
    if not counted:
        return []
    step = min(counted, key=lambda row: abs(row["samples"] - samples))["step"]
    near = [row for row in counted if abs(row["step"] - step) <= NEAR_STEPS]
    found = []
    for key in near[0]:
        values = [row[key] for row in near if _is_number(row.get(key))]
        if not _is_figure(key) or len(values) < max(2, len(near)):
            continue
        spread = f"± {number(stdev(values))} (standard deviation over {len(values)} rows of metrics around it)"
        found.append(Figure(f"{_words(key)}, in training", fmean(values), spread))
    return found


def _last(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """The last row of metrics, where nothing better is there."""
    if not rows:
        return []
    return [
        Figure(f"{_words(key)}, at the end", value)
        for key, value in rows[-1].items()
        if _is_number(value) and _is_figure(key)
    ]


def _is_figure(key: str) -> bool:
    """Whether a metric says how good a model is, and not how fast it was made."""
    return key not in NO_FIGURES and not key.startswith("smoothed_") and not key.endswith("_s")


def _is_text_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: float) -> str:
    """Four digits, or all of a whole number, with commas."""
    if isinstance(value, int) or (value == round(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"


def _words(*keys: str) -> str:
    return ": ".join(WORDS.get(key, key.replace("_", " ")) for key in keys)


# --- facts --------------------------------------------------------------------------------------------------


def facts(run: RunRecord | None) -> dict[str, str]:
    """How the model was made, as rows of a table."""
    if run is None:
        return {"record": "none was given: how this model was made is not known here"}
    settings = run.settings
    rows = {"data": data(settings), **_commands(run.starts)}
    seeds = {key: settings[key] for key in settings if key == "seed" or key.endswith("_seed")}
    rows["seed"] = plain(", ".join(f"{value}" if key == "seed" else f"{key} {value}" for key, value in seeds.items()))
    made = {"hardware": hardware(run.starts), "time": duration(run.starts), "software": _software(run.starts)}
    rows |= {key: plain(value) for key, value in made.items()}
    return {key: value or "not recorded" for key, value in rows.items()}


def data(settings: Mapping[str, Any]) -> str:
    """What a model was trained on, as far as its settings say."""
    parts = []
    if settings.get("generator"):
        use = f" ({plain(', '.join(map(str, settings['g_use'])))})" if settings.get("g_use") else ""
        parts.append(f"images that the generator {code(settings['generator'])}{use} makes")
        if _is_number(settings.get("truncation")):
            mean, std, bound = (number(settings.get(key, 0)) for key in ("mean", "std", "truncation"))
            parts.append(f"from noise of mean {mean} and standard deviation {std}, truncated at {bound} of these")
    named = [code(settings[key]) for key in DATA_KEYS if settings.get(key)]
    return "; ".join([*([" ".join(parts)] if parts else []), *named])


def hardware(starts: Sequence[Mapping[str, Any]]) -> str:
    found = []
    for start in starts:
        n = start.get("processes", 1)
        one = start.get("device", "cpu")
        if one == "cpu":
            one = f"{start.get('threads', '?')} thread(s) of {start.get('cpu', 'a CPU')}"
        found.append(f"{n} x {one}" if n != 1 else one)
    return ", then ".join(dict.fromkeys(found))


def duration(starts: Sequence[Mapping[str, Any]]) -> str:
    """The time that all starts took together; a start that was killed has left none."""
    times_s = [start["elapsed_s"] for start in starts if _is_number(start.get("elapsed_s"))]
    if not times_s:
        return ""
    total_s = round(sum(times_s))
    hours, minutes, seconds = total_s // 3600, total_s // 60 % 60, total_s % 60
    text = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    begins = f", begun {starts[0]['at'][:10]}" if isinstance(starts[0].get("at"), str) else ""
    more = f" in {len(starts)} starts" if len(starts) > 1 else ""
    return ("at least " if len(times_s) < len(starts) else "") + text + more + begins


def _commands(starts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    commands = dict.fromkeys(code(start["command"]) for start in starts if start.get("command"))
    return {"command": "<br>".join(commands)}


def _software(starts: Sequence[Mapping[str, Any]]) -> str:
    names = ("mi_ml_gen", "torch", "python")
    return ", ".join(f"{name} {starts[-1][name]}" for name in names if starts and starts[-1].get(name))


_ABSOLUTE = re.compile(r"(?<![\w.:/~])(?:~|[A-Za-z]:)?[/\\](?:[\w.@+ -]+[/\\])+(?=[\w.@+-])")


def _unplaced(text: str) -> str:
    """Absolute paths without their folders: they name this machine and its user, and help nobody else."""
    return _ABSOLUTE.sub("", text)


# Whatever a run folder holds stands in the card as text: it may come from somebody else, and a card is a web page.


def plain(text: object) -> str:
    """Text as one line of Markdown in which nothing is markup or HTML."""
    return markdown(text, is_cell=True)


def code(text: object) -> str:
    """Text without its folders as one line of code, in a table too."""
    line = one_line(_unplaced(str(text)))
    return f"<code>{plain(line)}</code>" if re.search(r"[`|\\]", line) else f"`{line}`"


def fenced(language: str, text: str) -> str:
    """A block of code that no line of the text can end."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


# --- pictures -----------------------------------------------------------------------------------------------


def pictures(run: RunRecord | None) -> list[Path]:
    """The few pictures of a run that show most; of those that differ in a number, the last."""
    if run is None:
        return []
    latest = {}
    for path in sorted([*run.path.glob("*.png"), *run.path.glob("images/*.png")]):
        latest[re.sub(r"[_-]?\d+$", "", path.stem)] = path
    ranked = [path for name in PICTURES for stem, path in latest.items() if stem.startswith(name)]
    fitting = [path for path in dict.fromkeys(ranked) if path.stat().st_size <= MAX_PICTURE_BYTES]
    return fitting[:MAX_PICTURES]


# --- the text -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """What the card is about, from the model itself. use: Python, with {repo} where the repository goes, {generator}
    where the run's generator does. citation: a key of CITATIONS."""

    kind: str
    what: str
    about: str
    use: str
    n_parameters: int
    config: Mapping[str, Any]
    citation: str


def write(subject: Subject, run: RunRecord | None, repo: str, licence: str | None, shown: Sequence[str] = ()) -> str:
    """The card's Markdown. repo: OWNER/NAME, or what stands for it; shown: pictures, by their names in the folder."""
    name = repo.rpartition("/")[2]
    settings = run.settings if run is not None else {}
    front = {"library_name": "mi_ml_gen", **({"license": licence} if licence else {}), "tags": _tags(subject, settings)}
    table = {
        "model": f"{subject.what}, {subject.n_parameters:,} parameters",
        "configuration": plain(", ".join(f"{k} {v}" for k, v in subject.config.items() if _is_short(v))),
        **facts(run),
        "licence": licence or "not stated",
    }
    generator = json.dumps(_unplaced(str(settings.get("generator", "..."))), ensure_ascii=False)[1:-1]
    use = subject.use.replace("{repo}", repo).replace("{generator}", generator)
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
        f"# {plain(name)}",
        subject.about,
        *[f"![{_caption(path)}]({quote(path)})\n\n*{_caption(path).capitalize()}*" for path in shown],
        "## Use",
        fenced("python", use),
        "Needs the package mi_ml_gen. Loading runs nothing that is in the files: they hold numbers and text, and are "
        "held against their SHA-256.",
        "## How it was made",
        _table(("", ""), [(key, value) for key, value in table.items()]),
    ]
    if run is not None:
        parts += _numbers(run)
        text = yaml.safe_dump({k: _shareable(v) for k, v in settings.items()}, sort_keys=False, allow_unicode=True)
        parts.append(f"<details><summary>All settings of the run</summary>\n\n{fenced('yaml', text)}\n\n</details>")
    parts += [
        "## Citation",
        f"```bibtex\n{CITATIONS[subject.citation]}\n```",
        f"*Written by mi_ml_gen {__version__} from the run's record.*",
    ]
    return "\n\n".join(parts) + "\n"


def _numbers(run: RunRecord) -> list[str]:
    """The section of figures; a run that wrote a card of its own speaks for itself."""
    if run.card:
        body = re.sub(r"^# .*\n|^!\[.*\n", "", run.card, flags=re.MULTILINE).strip()
        body = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", body)
        return ["## Figures", "*From the run's own card:*", re.sub(r"^## ", "### ", body, flags=re.MULTILINE)]
    found = figures(run)
    if not found:
        return ["## Figures", "None recorded."]
    rows = [(plain(figure.name), number(figure.value), figure.interval) for figure in found]
    notes = [f"{plain(_words(k))}: {plain(v)}" for k, v in run.results.get("summary", {}).items() if isinstance(v, str)]
    table = _table(("figure", "value", "interval or spread"), rows)
    return ["## Figures", table, *(["\n".join(f"- {note}" for note in notes)] if notes else [])]


def _caption(path: str) -> str:
    stem = PurePath(path).stem
    return next(words for beginning, words in PICTURES.items() if stem.startswith(beginning))


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float) and len(str(value)) < 40


def _tags(subject: Subject, settings: Mapping[str, Any]) -> list[str]:
    names = ["mi_ml_gen", subject.kind, settings.get("generator"), settings.get("method") or settings.get("encoder")]
    return list(dict.fromkeys(str(name) for name in names if name and re.fullmatch(r"[\w.-]+", str(name))))


def _shareable(value: Any) -> Any:
    if isinstance(value, list):
        return [_shareable(item) for item in value]
    return _unplaced(value) if isinstance(value, str) else value


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    right = [j > 0 and head[j] == "value" for j in range(len(head))]
    rule = ["---:" if is_right else "---" for is_right in right]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

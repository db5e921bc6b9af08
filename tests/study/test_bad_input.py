"""Bad input is refused by name, value and remedy, before anything is written."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from fragile_lib.study.__main__ import main
from fragile_lib.study.params import check_parameters, load_specs
from fragile_lib.study.plan import prepare
from fragile_lib.tools.errors import InputError

DEPTH = "depth: {type: int, min: 1, max: 64, help: hidden layers}"
BASE = "base: {weight_decay: 0.005, fraction: 0.2, activation: relu, seeds: [0, 1], certify: true, mode: ok}"
GRID = "  quick:\n    grids: {depths: {depth: [1, 2]}}"


def base(name: str, value: str) -> tuple[str, str]:
    old = {"weight_decay": "0.005", "fraction": "0.2", "activation": "relu", "seeds": "[0, 1]", "certify": "true"}[name]
    return BASE, BASE.replace(f"{name}: {old}", f"{name}: {value}")


def grid(axes: str) -> tuple[str, str]:
    return GRID, f"  quick:\n    grids: {axes}"


def bomb(level: str, count: int = 30) -> str:
    """Return a list whose every entry names the one before it, of many levels."""
    levels = ", ".join(f"&a{i} " + level.format(f"*a{i - 1}", f"x{i}") for i in range(1, count + 1))
    return f"[&a0 {{x: 1}}, {levels}]"


def merged(level: str, count: int) -> tuple[str, str]:
    """Mappings that merge the one before them, then one that is merged into the file's."""
    return BASE, f"more: {bomb(level, count)}\n{BASE[:-1]}, <<: *a{count}}}"


MANY = [0.0001 * i for i in range(1, 2001)]
# What is replaced in the good file by what; then what the message must name: the parameter, the value, the remedy.
CASES = {
    "depth 0": (*grid("{a: {depth: [0]}}"), "depth = 0", "at least 1"),
    "depth too large": (*grid("{a: {depth: [65]}}"), "depth = 65", "at most 64"),
    "depth as float": (*grid("{a: {depth: [3.0]}}"), "depth = 3.0", "give an int"),
    "depth as text": (*grid("{a: {depth: ['3']}}"), "depth = '3'", "give an int"),
    "depth as bool": (*grid("{a: {depth: [true]}}"), "depth = True", "give an int"),
    "depth null": (*grid("{a: {depth: [null]}}"), "depth = None", "missing"),
    "depth missing": (*grid("{a: {certify: [true]}}"), "depth = (missing)", "hidden layers"),
    "decay negative": (*base("weight_decay", "-0.1"), "weight_decay = -0.1", "at least 0"),
    "decay NaN": (*base("weight_decay", ".nan"), "weight_decay = nan", "not finite"),
    "decay infinite": (*base("weight_decay", ".inf"), "weight_decay = inf", "not finite"),
    "decay as text": (*base("weight_decay", "5e-3"), "weight_decay = '5e-3'", "write 1.0e-3"),
    "decay as list": (*base("weight_decay", "[0.1]"), "weight_decay = [0.1]", "give a float"),
    "fraction at its bound": (*base("fraction", "1.0"), "fraction = 1.0", "below 1"),
    "fraction 0": (*base("fraction", "0"), "fraction = 0.0", "above 0"),
    "seeds empty": (*base("seeds", "[]"), "seeds = []", "1 or more"),
    "seed negative": (*base("seeds", "[0, -1]"), "seeds[1] = -1", "at least 0"),
    "seed twice": (*base("seeds", "[3, 3]"), "seeds = [3, 3]", "without repeats"),
    "seed as text": (*base("seeds", "[0, one]"), "seeds[1] = 'one'", "list of int"),
    "seeds no list": (*base("seeds", "7"), "seeds = 7", "list of int"),
    "activation unknown": (*base("activation", "rellu"), "activation = 'rellu'", "did you mean 'relu'?"),
    "activation as number": (*base("activation", "1"), "activation = 1", "one of relu, tanh"),
    "certify as text": (*base("certify", "'yes'"), "certify = 'yes'", "give a bool"),
    "certify as number": (*base("certify", "1"), "certify = 1", "give a bool"),
    "parameter unknown": (BASE, BASE.replace("{weight", "{wieght: 1, weight"), "wieght = 1", "weight_decay"),
    "parameter unknown in a grid": (*grid("{a: {dept: [1]}}"), "dept = 1", "did you mean 'depth'?"),
    "parameter unknown in the page": ("page: {depth: 1}", "page: {dpeth: 1}", "dpeth = 1", "did you mean 'depth'?"),
    "page out of range": ("page: {depth: 1}", "page: {depth: -1}", "depth = -1", "page in profile"),
    "axis no list": (*grid("{a: {depth: 3}}"), "depth = 3", "an axis is a list"),
    "axis empty": (*grid("{a: {depth: []}}"), "depth = []", "at least one value"),
    "axis also set": (*grid("{a: {set: {depth: 1}, depth: [1]}}"), "depth = [1]", "remove one"),
    "needs as list": (*grid("{a: {needs: [x], depth: [1]}}"), "quick.grids.a.needs = ['x']", "a path"),
    "bad value in a grid of absent data": (*grid("{a: {needs: x, depth: [0]}}"), "depth = 0", "at least 1"),
    "grid empty": (*grid("{a: {}}"), "profiles.quick.grids.a = {}", "give axes"),
    "two grids of one name": (*grid("{a: {depth: [1]}, a: {depth: [2]}}"), "key = 'a'", "rename or remove one"),
    "two profiles of one name": (GRID, GRID + "\n" + GRID, "key = 'quick'", "rename or remove one"),
    "profile with another section": (*("    grids: {depths", "    grid: {depths"), "profiles.quick.grid", "'grids'"),
    "run id with a path": ('"toy-d{depth}"', '"../toy-d{depth}"', "run_id = '../toy-d1'", "letters, digits"),
    "run id with a folder": ('"toy-d{depth}"', '"toy/d{depth}"', "run_id = 'toy/d1'", "letters, digits"),
    "run id hidden": ('"toy-d{depth}"', '".toy{depth}"', "run_id = '.toy1'", "not starting with '.'"),
    "run id reserved": ('"toy-d{depth}"', '"pages"', "run_id = 'pages'", "choose another"),
    "run id of two runs": ('"toy-d{depth}"', '"toy"', "run_id = 'toy'", "differ in depth"),
    "run id unknown name": ('"toy-d{depth}"', '"toy-d{deph}"', "run_id = 'toy-d{deph}'", "did you mean 'depth'?"),
    "run id bad format": ('"toy-d{depth}"', '"toy-{activation:d}"', "run_id = ", "format text"),
    "run id missing": ('run_id: "toy-d{depth}"', "", "run_id = ''", "names each run"),
    "malformed": ("base: {", "base: {{", "file = 'params/toy.yaml'", "correct it"),
    "another notebook's name": ("notebook: toy", "notebook: iris", "notebook = 'iris'", "'toy'"),
    "section unknown": ("page: {depth: 1}", "pages: {depth: 1}", "pages = ", "did you mean 'page'?"),
    "type unknown": (DEPTH, DEPTH.replace("int", "integer"), "parameters.depth.type = 'integer'", "int, float"),
    "constraint unknown": (DEPTH, DEPTH.replace("max", "maxi"), "parameters.depth.maxi = 64", "did you mean 'max'?"),
    "constraint no number": (DEPTH, DEPTH.replace("64", "many"), "parameters.depth.max = 'many'", "finite number"),
    "help missing": (DEPTH, "depth: {type: int}", "parameters.depth.help = (missing)", "what it means"),
    "standard name declared": (DEPTH, DEPTH + "\n  run_id: {type: str, help: id}", "parameters.run_id", "remove it"),
    "limits unknown": ("page:", "limits: {thread: 1}\npage:", "limits.thread = 1", "did you mean 'threads'?"),
    "int of 400 digits": (*grid("{a: {depth: [" + "9" * 400 + "]}}"), "depth = (an int of about 400 digits)", "large"),
    "int of 5,000 digits": (*grid("{a: {depth: [" + "9" * 5000 + "]}}"), "number = '9999", "has 5000 digits"),
    "float of 400 digits": (*base("weight_decay", "9" * 400), "weight_decay = (an int of about 400", "give a float"),
    "float too large": (*base("weight_decay", "1.0e+400"), "weight_decay = inf", "not finite"),
    "bound of 400 digits": (DEPTH, DEPTH.replace("64", "9" * 400), "parameters.depth.max = (an int", "finite number"),
    "bounds crossed": (DEPTH, DEPTH.replace("64", "0"), "parameters.depth.min = 1", "larger than max"),
    "choices of two types": ("[relu, tanh]", "[relu, 1]", "parameters.activation.choices[1] = 1", "list of str"),
    "type as list": (DEPTH, DEPTH.replace("int", "[int]"), "parameters.depth.type = ['int']", "int, float"),
    "nested 5,000 deep": (BASE, f"base: {'[' * 5000}{']' * 5000}", "file = 'params/toy.yaml'", "nested too deeply"),
    "nested 5,000 maps deep": (BASE, f"base: {'{a: ' * 5000}{'}' * 5000}", "file = 'params/toy.yaml'", "nested too"),
    "aliases of aliases": (*base("weight_decay", bomb("[{0}, {0}]")), "weight_decay = [{'x': 1}, [{'x'", "a float"),
    "aliases for a list": (*base("seeds", bomb("[{0}, {0}]")), "seeds[0] = {'x': 1}", "list of int"),
    "aliases for a section": (BASE, f"base: {bomb('[{0}, {0}]')}", "base = [{'x': 1}, [{", "pairs"),
    "merges of merges": (BASE, f"base: {bomb('{{{1}: 1, <<: [{0}, {0}]}}')}", "base = [{'x': 1}, {'x'", "pairs"),
    "merges of merges for a section": (*merged("{{{1}: 1, <<: [{0}, {0}]}}", 1000), "<< = 1", "merges too many pairs"),
    "merges of all before": (*merged("{{{1}: 1, <<: {0}}}", 5_000), "<< = 1", "merges too many pairs"),
    "merges of many": (BASE, f"more: &a {{x: 1}}\n{BASE[:-1]}, <<: [{'*a, ' * 20_000}*a]}}", "<< = 20001", "too much"),
    "a date that is none": (*base("weight_decay", "2024-13-45"), "file = 'params/toy.yaml'", "correct it"),
    "octal": (*grid("{a: {depth: [010]}}"), "number = '010'", "write it as a decimal"),
    "sexagesimal": (*grid("{a: {depth: [1:30]}}"), "number = '1:30'", "write it as a decimal"),
    "axis with a repeat": (*grid("{a: {depth: [1, 2, 1]}}"), "depth = [1]", "stands twice"),
    "axis with a repeat as float": (
        *grid("{a: {depth: [1], weight_decay: [1, 1.0]}}"),
        "weight_decay = [1.0]",
        "twice",
    ),
    "four million runs": (
        *grid(f"{{a: {{weight_decay: {MANY}, fraction: {MANY}}}}}"),
        "grids = 4000002",
        "10000 at most",
    ),
    "a million runs in many grids": (
        *grid(f"{{{', '.join(f'g{i}: {{depth: {list(range(1, 65))}, fraction: {MANY[:150]}}}' for i in range(105))}}}"),
        "grids = 1008002",
        "10000 at most",
    ),
    "key of two lines": (BASE, BASE.replace("{weight", '{"a\\nb": 1, weight'), "key = 'a\\nb'", "text of one line"),
    "key with a colour": (BASE, BASE.replace("{weight", '{"a\\e[31mb": 1, weight'), "key = 'a\\x1b[31mb'", "one line"),
    "help without end": (
        DEPTH,
        DEPTH.replace("64", "1").replace("hidden", "h" * 10**6),
        "depth = 2",
        "quick, grid dep",
    ),
    "a bool that is none": (*base("certify", "!!bool abc"), "file = 'params/toy.yaml'", "correct it"),
    "an int that is none": (*base("seeds", "[!!int '']"), "file = 'params/toy.yaml'", "correct it"),
    "page false": ("page: {depth: 1}", "page: false", "page = False", "{} for none"),
    "needs two lines": (*grid('{a: {needs: "a\\nb", depth: [1]}}'), "grids.a.needs = 'a\\nb'", "inside the data root"),
    "run id as wide as memory": ("d{depth}", "d{depth:01000000000d}", "run_id = 'toy-d{depth:0100", "two digits"),
    "run id as wide as a parameter": ("d{depth}", "d{depth:{depth}}", "run_id = 'toy-d{depth:{dep", "two digits"),
    "run id of 300 characters": ("toy-d{", "t" * 300 + "{", "run_id = 'ttt", "at most 100"),
    "run id with a dash first": ('"toy-d{', '"-d{', "run_id = '-d1'", "not starting with '.' or '-'"),
    "run id with a dot last": ('d{depth}"', 'd{depth}."', "run_id = 'toy-d1.'", "not ending with '.'"),
    "run id that looks inside": ("d{depth}", "d{depth.real}", "run_id = 'toy-d{depth.real}'", "did you mean 'depth'?"),
    **{
        f"profile named {name}": ("  quick:", f'  "{name}":', f"profile = '{name}'", "YAML reads as another")
        for name in ("0123", "1e3", "12", "inf", "yes", "null", "-x", "a.", "", "a b", "ü", "p" * 101)
    },
    "profile named as octal": ("  quick:", "  0123:", "number = '0123'", "write it as a decimal"),
    "needs outside": (*grid("{a: {needs: ../x, depth: [1]}}"), "quick.grids.a.needs = '../x'", "inside the data root"),
    "needs elsewhere": (
        *grid("{a: {needs: /etc, depth: [1]}}"),
        "quick.grids.a.needs = '/etc'",
        "inside the data root",
    ),
    "needs nothing": (*grid('{a: {needs: "", depth: [1]}}'), "quick.grids.a.needs = '.'", "inside the data root"),
    "needs misspelt": (*grid("{a: {needs: imagnet/train, depth: [1]}}"), "needs = 'imagnet/train'", "nothing to run"),
    "limits without sense": ("page:", "limits: {threads: 1000000}\npage:", "limits.threads = 1000000", "at most 1024"),
    "limits of 400 digits": (
        "page:",
        f"limits: {{cell_minutes: {'9' * 400}}}\npage:",
        "limits.cell_minutes = (an int",
        "at",
    ),
    "limits zero": ("page:", "limits: {threads: 0}\npage:", "limits.threads = 0", "at least 1"),
}


def refused(toy, capsys, *arguments: str) -> str:
    """Run the study; assert that it refuses in one line and writes nothing; return the line."""
    before = toy.files()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert main(["run", *arguments]) == 2
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 1000
    assert toy.files() == before, "something was written"
    assert not (toy.root / "runs").exists()
    return lines[0]


@pytest.mark.parametrize("case", CASES)
def test_parameters_file(toy, capsys, case):
    old, new, names, remedy = CASES[case]
    toy.edit(old, new)
    message = refused(toy, capsys)
    assert names in message and remedy in message


NO_MAPPING = ("", "\n# nothing\n", "- 1\n", "just text\n", "1: {a: 1}\n", "\xff")
NO_NOTEBOOK = (
    *(None, "{", "[]", '{"cells": 1}', '{"cells": []}', '{"cells": [1]}', '{"cells": [{"metadata": []}]}'),
    *('{"cells": [{"metadata": {"tags": 3}}]}', '{"cells": [{"source": 3}]}', '{"cells": [{"source": [3]}]}'),
)


def write(path: Path, text: str | None) -> None:
    path.unlink() if text is None else path.write_text(text, encoding="latin-1")


def fifo(path: Path) -> None:
    """Put in the place of a file what would be waited for."""
    path.unlink()
    os.mkfifo(path)


def of_parameters(toy, old: str, new: str) -> None:
    """Edit the cell of the notebook's parameters."""
    content = json.loads(toy.notebook.read_text())
    assert old in content["cells"][1]["source"]
    content["cells"][1]["source"] = content["cells"][1]["source"].replace(old, new)
    toy.notebook.write_text(json.dumps(content))


def twin(toy, run_id: str, name: str = "twin") -> None:
    """Write parameters of a second notebook with the toy's grids."""
    text = toy.params.read_text().replace("notebook: toy", f'notebook: "{name}"').replace("toy-d", run_id)
    (toy.params.parent / f"{name}.yaml").write_text(text)


# What is done to the files of the toy, and what the message must name.
FILES = {
    **{f"no mapping {text!r}": (lambda toy, text=text: write(toy.params, text), "params/toy.yaml")
       for text in NO_MAPPING},
    **{f"notebook {text!r}": (lambda toy, text=text: write(toy.notebook, text), "notebook = 'notebooks/toy.ipynb'")
       for text in NO_NOTEBOOK},
    "parameters in a fifo": (lambda toy: fifo(toy.params), "file = 'params/toy.yaml'"),
    "notebook in a fifo": (lambda toy: fifo(toy.notebook), "notebook = 'notebooks/toy.ipynb'"),
    "notebook nested": (lambda toy: of_parameters(toy, "= 1\n", f"= {'-' * 5000}1\n"), "'notebooks/toy.ipynb'"),
    "notebook named as a number": (lambda toy: twin(toy, "twin-d", "1e3"), "notebook = '1e3'"),
    "another file": (lambda toy: write(toy.params.parent / "other.yaml", ""), "params/other.yaml"),
    "undeclared": (lambda toy: of_parameters(toy, "mode =", "width = 5\nmode ="), "width = 5"),
    "declared alone": (lambda toy: of_parameters(toy, "certify = True", ""), "certify = '(missing)'"),
    "one run id of two notebooks": (lambda toy: twin(toy, "TOY-d"), "run_id = 'TOY-d1'"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files(toy, capsys, case):
    """A mistake in another notebook's file is found before the run as well."""
    change, named = FILES[case]
    change(toy)
    message = refused(toy, capsys, "--notebook", "toy")
    assert named in message and ("; " in message or "must" in message)


@pytest.mark.parametrize(
    ("arguments", "names", "remedy"),
    [
        (["--profile", "quik"], "profile = 'quik'", "did you mean 'quick'?"),
        (["--profile", "../quick"], "profile = '../quick'", "there are quick, laptop"),
        (["--profile", "paper"], "profile = 'paper'", "there are quick, laptop"),
        (["--notebook", "tory"], "notebook = 'tory'", "did you mean 'toy'?"),
        (["--jobs", "0"], "jobs = '0'", "at least 1"),
        (["--jobs", "-2"], "jobs = '-2'", "at least 1"),
        (["--jobs", "two"], "jobs = 'two'", "give an int"),
        (["--jobs", "010"], "jobs = '010'", "without leading zeros"),
        (["--jobs", "9" * 5000], "jobs = '999", "at most 9999"),
        (["--jobs", "\u0663"], "jobs = '\u0663'", "give an int"),
        (["--profile", "p" * 100_000], "profile = 'ppp", "there are quick, laptop"),
        (["--profile", "a\nb"], "profile = 'a\\nb'", "there are quick, laptop"),
        (["--notebook", "a\nb"], "notebook = 'a\\nb'", "known are toy"),
        (["--prof", "quick"], "command line = 'unrecognized arguments: --prof quick'", "--help"),
        (["--profile"], "command line = 'argument --profile: expected one argument'", "--help"),
        (["more"], "command line = 'unrecognized arguments: more'", "--help"),
    ],
)
def test_command_line(toy, capsys, arguments, names, remedy):
    message = refused(toy, capsys, *arguments)
    assert names in message and remedy in message


@pytest.mark.parametrize("text", ['"; touch {0}; "', "$(shell touch {0})", "$$(touch {0})", "`touch {0}`", "' x", "-x"])
def test_make_hands_over_what_is_asked_for_as_data(tmp_path, text):
    """A stand-in for Python notes what it is called with."""
    python, noted, text = tmp_path / "bin" / "python", tmp_path / "noted", text.format(tmp_path / "executed")
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > {noted}\n")
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    command = ["make", "-C", str(Path(__file__).parents[2]), "study", f"VENV={tmp_path}"]
    asked = {"PROFILE": text, "NOTEBOOK": text, "JOBS": text}
    for words, inherited in (([f"{name}={value}" for name, value in asked.items()], {}), ([], asked)):
        subprocess.run([*command, *words], env=os.environ | inherited, check=True, capture_output=True)
        given = noted.read_text().split("\0")
        assert given[:3] == ["-m", "fragile_lib.study", "run"]
        assert given[3:-1] == [f"--profile={text}", f"--notebook={text}", f"--jobs={text}"]
    assert not (tmp_path / "executed").exists()


def test_a_profile_of_one_file_alone_is_run_for_its_notebook(toy, capsys):
    twin(toy, "twin-d")
    (toy.notebook.parent / "twin.ipynb").write_text(toy.notebook.read_text())
    toy.edit("  laptop:", "  mine:\n    grids: {own: {depth: [3, 4]}}\n  laptop:")
    for chosen in ([], ["--notebook", "toy"]):
        assert main(["list", "--profile", "mine", *chosen]) == 0
        assert capsys.readouterr().out == "missing    toy-d3\nmissing    toy-d4\n0 of 2 finished\n"
    message = refused(toy, capsys, "--profile", "mine", "--notebook", "twin")
    assert "profile = 'mine': is not in params/twin.yaml; choose one of quick, laptop" in message


def test_a_grid_without_its_data_is_told(toy, capsys):
    toy.edit("{depths: {depth: [1, 2]}}\n  laptop", "{a: {depth: [1]}, b: {needs: imagnet, depth: [2]}}\n  laptop")
    assert main(["list"]) == 0
    told = capsys.readouterr().out
    assert "0 of 1 finished\nleft out: grid b of toy, which needs imagnet in " in told and "toy-d2" not in told
    assert prepare(toy.root, "quick")[1] == [told.splitlines()[-1]]


def test_equal_runs_of_two_grids_are_one(toy):
    toy.edit("{depths: {depth: [1, 2]}}", "{a: {depth: [1, 2]}, b: {depth: [2, 3], weight_decay: [0.005]}}")
    runs = load_specs(toy.params.parent)["toy"].runs("quick")
    assert [run.run_id for run in runs] == ["toy-d1", "toy-d2", "toy-d3"]


def good() -> dict:
    return {
        **{"depth": 2, "weight_decay": 0, "fraction": 0.5, "activation": "tanh", "seeds": [4], "certify": False},
        **{"mode": "ok", "n": 3, "In": ["", "depth = 1"], "_": None},
    }


def test_check_parameters_in_a_notebook(toy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # whatever the kernel's folder
    parameters = check_parameters("toy", good())
    assert dict(parameters) == {k: v for k, v in good().items() if k not in ("n", "In", "_")}
    assert parameters["depth"] == 2 and isinstance(parameters["weight_decay"], float)
    with pytest.raises(TypeError, match="does not support item assignment"):
        parameters["depth"] = 3


def test_each_line_of_a_message_has_at_most_900_characters():
    short, long = "x = 1: give a number", "y = " + "z" * 10_000 + ": remove it"
    found = str(InputError(f"{short}\n{long}\n{short}")).splitlines()
    assert found[0] == found[2] == short and len(found) == 3
    assert len(found[1]) == 900 and found[1].startswith("y = zzz") and found[1].endswith("zzz: remove it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth = 0: is out of range; give an int, at least 1"),
        ({"seeds": []}, "seeds = \\[\\]: is too short"),
        ({"In": ["", "# Parameters\ndeph = 3\n"], "deph": 3}, "deph = 3: is not a parameter; did you mean 'depth'"),
        ({"activation": ...}, r"activation = \(missing\): give a str, one of relu, tanh"),
    ],
)
def test_check_parameters_refuses(toy, changes, message):
    with pytest.raises(InputError, match=message):
        check_parameters("toy", {k: v for k, v in {**good(), **changes}.items() if v is not ...})

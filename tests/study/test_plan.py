"""Which runs are up to date; restoring, setting aside, publishing; pages. No kernel is started here."""

import json
import lzma

import pandas as pd
import pytest

from fragile_lib.study import run as pages
from fragile_lib.study.execute import NotebookFailed
from fragile_lib.study.files import content_of, stored, write_packed
from fragile_lib.study.params import load_specs
from fragile_lib.study.plan import make_plan, prepare
from fragile_lib.study.study import collect_published, publish
from fragile_lib.tools.errors import InputError
from fragile_lib.tools.files import load_yaml


def states(toy, profile="quick"):
    return {job.run.run_id: job.state for job in make_plan(toy.root, profile)}


def times(toy):
    return {str(p): p.stat().st_mtime_ns for p in toy.root.rglob("*") if p.is_file()}


def test_preparing_twice_changes_nothing(toy):
    prepare(toy.root, "quick")
    assert load_yaml(toy.run_dir("toy-d2") / "params.yaml") == {
        **{"depth": 2, "weight_decay": 0.005, "fraction": 0.2, "activation": "relu", "seeds": [0, 1]},
        **{"certify": True, "mode": "ok"},
    }
    before = times(toy)
    prepare(toy.root, "quick")
    assert times(toy) == before


def test_a_finished_run_has_a_stamp(toy):
    toy.finish()
    (toy.run_dir("toy-d1") / ".partial-1").mkdir()  # left by a kill just after the record was in place
    prepare(toy.root, "quick")
    assert not list(toy.run_dir("toy-d1").glob(".partial*"))
    assert set(states(toy).values()) == {"finished"}
    assert all(job.stamp.exists() for job in make_plan(toy.root, "quick"))


def test_a_changed_parameter_makes_only_its_run_outdated(toy):
    toy.finish()
    toy.edit("{depths: {depth: [1, 2]}}\n  laptop", "{a: {depth: [1]}, b: {depth: [2], mode: [error]}}\n  laptop")
    jobs, _ = prepare(toy.root, "quick")
    assert states(toy) == {"toy-d1": "finished", "toy-d2": "outdated"}
    assert [job.stamp.exists() for job in jobs] == [True, False]
    assert (toy.run_dir("toy-d2") / "result.json").exists(), "the older result stays until the new one is complete"


def test_a_grid_that_needs_data_is_planned_where_it_is_in_the_data_root(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("FRAGILE_DATA", str(tmp_path / "data"))
    toy.edit("{depths: {depth: [1, 2]}}\n  laptop", "{a: {depth: [1]}, b: {needs: set/train, depth: [2]}}\n  laptop")
    assert set(states(toy)) == {"toy-d1"}
    (tmp_path / "data/set").mkdir(parents=True)
    (tmp_path / "data/set/train").touch()
    assert set(states(toy)) == {"toy-d1", "toy-d2"}


def test_prose_and_outputs_make_nothing_outdated(toy):
    toy.finish()
    content = json.loads(toy.notebook.read_text())
    content["cells"][0]["source"] = ["# Another title"]
    content["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["x"]}]
    toy.notebook.write_text(json.dumps(content))
    assert set(states(toy).values()) == {"finished"}


def published(toy):
    """A laptop study, finished and published; then its runs are deleted, as in a fresh clone."""
    toy.finish("laptop")
    assert publish(toy.root, "laptop", load_specs(toy.params.parent)) == []
    (toy.root / "runs").rename(toy.root / "before")


def test_published_records_are_restored_in_a_fresh_clone(toy):
    published(toy)
    jobs, told = prepare(toy.root, "laptop")
    assert set(states(toy, "laptop").values()) == {"finished"} and len(told) == 2
    assert all(job.stamp.exists() for job in jobs)
    assert prepare(toy.root, "laptop")[1] == []
    toy.edit("  laptop:", "  paper:\n    set: {seeds: [0, 1, 2]}\n    grids: {depths: {depth: [1, 2]}}\n  laptop:")
    for profile in ("quick", "paper"):
        prepare(toy.root, profile)
        assert set(states(toy, profile).values()) == {"missing"}, "another profile takes nothing from it"


def test_the_published_table_keeps_its_order_when_it_is_made_again(toy):
    toy.edit("  laptop:", "  paper:\n    grids: {depths: {depth: [2, 1]}}\n  laptop:")
    published(toy)
    plain, packed = (toy.root / "reports" / name for name in ("results.csv", "results.csv.xz"))
    table, before = plain.read_text(), packed.stat().st_mtime_ns
    plain.unlink()
    collect_published(toy.root)
    assert plain.read_text() == table == content_of(packed).decode(), "whoever reads the plain table has it again"
    assert packed.stat().st_mtime_ns == before and pd.read_csv(packed).equals(pd.read_csv(plain))


def test_a_packed_file_is_written_again_only_where_its_text_has_changed(tmp_path):
    path, packed = tmp_path / "a.csv", tmp_path / "a.csv.xz"
    packed.write_bytes(lzma.compress(b"1", preset=0))  # as another version of the library may pack it
    before = packed.read_bytes()
    write_packed(path, "1")
    assert packed.read_bytes() == before and stored(path) == packed
    for damaged in (b"no archive", before[:-3]):
        packed.write_bytes(damaged)
        write_packed(path, "1")
        assert content_of(packed) == b"1" and list(tmp_path.iterdir()) == [packed]


def test_published_records_of_other_code_are_not_restored(toy):
    published(toy)
    toy.notebook.write_text(toy.notebook.read_text().replace("1 / (1 + depth)", "1 / (2 + depth)"))
    assert prepare(toy.root, "laptop")[1] == []
    assert set(states(toy, "laptop").values()) == {"missing"}


def test_quick_is_never_published(toy):
    toy.finish()
    before = toy.files()
    with pytest.raises(InputError, match="profile = 'quick': is never published"):
        publish(toy.root, "quick", load_specs(toy.params.parent))
    assert toy.files() == before


def test_publishing_keeps_what_is_not_finished_anew(toy):
    toy.finish("laptop")
    specs = load_specs(toy.params.parent)
    publish(toy.root, "laptop", specs)
    records = toy.root / "reports" / "records"
    older = (records / "toy-d2" / "result.json.xz").read_bytes()
    (records / "gone").mkdir()
    (toy.run_dir("toy-d2", "laptop") / "result.json").unlink()
    (toy.run_dir("toy-d2", "laptop") / "failure.json").write_text("{}")
    told = publish(toy.root, "laptop", specs)
    assert len(told) == 2 and "toy-d2: failed, not published; its older record stays" in told[0] and "gone" in told[1]
    assert [path.read_bytes() for path in (records / "toy-d2").glob("result*")] == [older]
    assert (records / "toy-d2" / "failure.json").exists() and not (records / "gone").exists()
    assert (toy.root / "reports" / "results.csv").read_text().count("toy-d2") == 2


def test_cells_of_a_card_are_published_beside_the_study_of_record(toy):
    """Neither takes the other's records away, and the table holds both."""
    toy.edit("  laptop:", "  gpu:\n    grids: {depths: {run_id: 'card-d{depth}', depth: [7]}}\n  laptop:")
    published(toy)
    toy.finish("gpu")
    specs = load_specs(toy.params.parent)
    assert publish(toy.root, "gpu", specs) == []
    both = (toy.root / "reports" / "results.csv").read_text()
    assert both.count("card-d7,gpu") == 2 and both.count(",laptop,") == 4
    toy.finish("laptop")
    assert publish(toy.root, "laptop", specs) == []
    assert (toy.root / "reports" / "records" / "card-d7" / "result.json.xz").exists()
    collect_published(toy.root)
    assert sorted((toy.root / "reports" / "results.csv").read_text().splitlines()) == sorted(both.splitlines())


@pytest.fixture
def page(toy, monkeypatch):
    """Return a call that builds the toy's page with a stand-in for the kernel, and the parameters it was given."""
    given = []

    def execute(source, output, parameters, root, **limits):
        if parameters["certify"] is False:
            raise NotebookFailed("ValueError", f"cannot in {root}/notebooks")
        given.append(parameters)
        content = json.loads(source.read_text())
        injected = {"cell_type": "code", "source": "# Parameters", "metadata": {"tags": ["injected-parameters"]}}
        content["cells"].insert(2, {**injected, "outputs": [], "execution_count": 1})
        content["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": f"{len(given)}"}]
        output.write_text(json.dumps(content))

    monkeypatch.setattr(pages, "execute_notebook", execute)

    def build(profile="quick"):
        return pages.build_page(toy.root, profile, load_specs(toy.params.parent)["toy"])

    return build, given


def test_page_is_executed_only_when_something_changed(toy, page):
    build, given = page
    results = toy.root / "runs" / "quick" / "results.csv"
    assert build() == "executed" and given[0]["grid_results"] == ""
    assert build() == "up to date"
    results.write_text("run_id\n")
    assert build() == "executed" and given[1]["grid_results"] == "../runs/quick/results.csv"
    assert (given[1]["depth"], given[1]["output_dir"], given[1]["profile"]) == (1, "", "quick")
    assert build() == "up to date" and len(given) == 2


def test_new_prose_goes_around_the_old_outputs(toy, page):
    build, given = page
    build()
    content = json.loads(toy.notebook.read_text())
    content["cells"].insert(0, {"cell_type": "markdown", "metadata": {}, "source": ["# New"]})
    content["cells"][-1]["source"] = "# a comment\n" + content["cells"][-1]["source"]
    toy.notebook.write_text(json.dumps(content))
    assert build() == "new text" and len(given) == 1
    cells = json.loads(pages.page_path(toy.root, "quick", "toy").read_text())["cells"]
    assert cells[0]["source"] == ["# New"] and cells[-1]["outputs"][0]["text"] == "1"
    assert cells[-1]["source"].startswith("# a comment") and cells[3]["source"] == "# Parameters"


def test_a_failed_page_leaves_the_older_one(toy, page):
    build, _ = page
    build()
    older = pages.page_path(toy.root, "quick", "toy").read_bytes()
    toy.edit("page: {depth: 1}", "page: {depth: 1, certify: false}")
    with pytest.raises(NotebookFailed):
        build()
    assert pages.page_path(toy.root, "quick", "toy").read_bytes() == older
    failure = json.loads((toy.root / "runs/quick/pages/.failed/toy/failure.json").read_text())
    assert failure["message"] == "cannot in notebooks" and failure["error"] == "ValueError"
    toy.edit("certify: false", "certify: true")
    assert build() == "up to date" and not (toy.root / "runs/quick/pages/.failed/toy").exists()


def test_a_page_whose_code_changed_meanwhile_is_refused_and_made_again(toy, page, monkeypatch):
    build, _ = page
    execute = pages.execute_notebook

    def edited(source, output, parameters, root, **limits):
        toy.notebook.write_text(toy.notebook.read_text().replace("1 / (1 + depth)", "1 / (2 + depth)"))
        execute(source, output, parameters, root, **limits)

    monkeypatch.setattr(pages, "execute_notebook", edited)
    with pytest.raises(NotebookFailed, match="changed since it was planned"):
        build()
    assert not pages.page_path(toy.root, "quick", "toy").exists()
    assert build() == "executed"


def test_a_published_page_is_restored(toy, page):
    build, given = page
    build("laptop")
    publish(toy.root, "laptop", load_specs(toy.params.parent))
    (toy.root / "runs").rename(toy.root / "before")
    assert build("laptop") == "restored" and len(given) == 1

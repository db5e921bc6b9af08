"""The cost model finds known coefficients again, and a planned run counts what a real one does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fragile_lib.data.sets import Data
from fragile_lib.deep import cost, estimators, network, planned
from fragile_lib.deep.cost import CostModel
from fragile_lib.examination import choose_test_points
from fragile_lib.minimise.modules import Schedule, go_on_without, train
from fragile_lib.models.architectures import build
from fragile_lib.tools.errors import InputError

KNOWN = {  # seconds of an image's pass: constant, and for each operation
    "step": (2e-4, 1.5e-10),
    "small_batch": (1e-3, 1.2e-9),
    "hessian": (4e-4, 5e-10),
    "gauss_newton": (2.5e-4, 3e-10),
    "set_up": (3e-4, 1.4e-9),
}
NETWORKS = {
    "small_cnn": (4e5, 2_616),
    "lenet": (8e5, 61_706),
    "vgg13": (7e6, 150_000),
    "resnet18": (4e6, 176_000),
    "resnet50": (1e7, 375_000),
}
TRUTH = CostModel(KNOWN, 1e7)


def make_works(noise: float = 0.0, repeats: int = 1, seed: int = 0, networks=NETWORKS) -> list[dict]:
    rng, works = np.random.default_rng(seed), []
    for architecture, (flops, n_params) in list(networks.items()) * repeats:
        work = {"architecture": architecture, "n_train": 500, "test_points": 6, "flops_per_image": flops}
        work |= {"n_params": n_params, "train": {"images": 10_000}, "retrain": {"images": 70_000}}
        work |= {
            name: {"products": p} for name, p in (("lissa", 17.0), ("cg_ggn", 66.0), ("ekfac", 0), ("identity", 0))
        }
        seconds = TRUTH.predict(work)
        for part in cost.parts_of(work):
            work[part] = work[part] | {"seconds": seconds[part] * np.exp(noise * rng.standard_normal())}
        works.append(work)
    return works


def test_known_coefficients_are_found_and_unseen_architectures_predicted():
    works = make_works()
    model = cost.fit(works)
    assert set(model.coefficients) == set(KNOWN) and model.flops == 1e7
    for kind, pair in KNOWN.items():
        assert model.coefficients[kind] == pytest.approx(pair, rel=1e-4), kind
    errors = cost.held_out_errors(works)
    assert list(errors) == list(cost.PARTS)
    assert all(e.worst < 1e-4 and e.median <= e.worst and e.n == len(NETWORKS) for e in errors.values())


def test_noise_moves_predictions_less_than_itself():
    works = make_works(noise=0.2, repeats=6)
    predicted = cost.fit(works).predict(works[-1])
    for part, seconds in TRUTH.predict(works[-1]).items():
        assert abs(np.log(predicted[part] / seconds)) < 0.2, part
    errors = cost.held_out_errors(works)
    assert all(0.03 < e.median < 0.4 for e in errors.values())
    one_slow = [w | {"train": {"images": 10_000, "seconds": 3 * w["train"]["seconds"]}} for w in make_works()[:1]]
    worst = cost.held_out_errors(one_slow + make_works()[1:])["train"]
    assert worst.worst == pytest.approx(np.log(3), rel=1e-3)  # on the slow one itself, unseen by its own fit


def test_too_high_and_too_low_count_alike():
    works = make_works(networks=dict.fromkeys("abc", (1e6, 10)))
    for work, factor in zip(works, (0.25, 4.0, 1.0), strict=True):
        work["train"]["seconds"] *= factor
        work["retrain"]["seconds"] *= factor
    assert cost.fit(works).seconds("step", 1e6) == pytest.approx(TRUTH.seconds("step", 1e6), rel=1e-5)


def test_coefficients_are_seconds_of_an_image():
    works = make_works()
    slower = [{k: _times(v, seconds=2) for k, v in work.items()} for work in works]
    more = [{k: _times(v, images=2, products=1) for k, v in work.items()} for work in works]
    for kind, pair in cost.fit(slower).coefficients.items():
        assert pair == pytest.approx(tuple(2 * c for c in KNOWN[kind]), rel=1e-3)
    assert cost.fit(more).coefficients["step"] == pytest.approx(tuple(c / 2 for c in KNOWN["step"]), rel=1e-3)


def test_runs_of_one_network_show_what_no_model_can_tell():
    works = make_works(repeats=2)
    assert cost.repeat_factor(works) == pytest.approx(1) and cost.repeat_factor([]) == 1
    works[3]["cg_ggn"] = _times(works[3]["cg_ggn"], seconds=2.5)
    works[4] = {k: _times(v, seconds=9) for k, v in works[4].items()} | {"n_params": 1}  # another network
    assert cost.repeat_factor(works) == pytest.approx(2.5)


def _times(value: object, **factors: float) -> object:
    return {k: v * factors.get(k, 1) for k, v in value.items()} if isinstance(value, dict) else value


def test_no_coefficient_is_negative():
    works = make_works()
    for work in works:  # less time for larger networks
        work["train"]["seconds"] = work["retrain"]["seconds"] / 7 * 1e6 / work["flops_per_image"]
    assert min(min(pair) for pair in cost.fit(works).coefficients.values()) >= 0


def test_a_prediction_by_hand():
    model = CostModel({"step": (1.0, 0.5), "gauss_newton": (2.0, 1.0), "hessian": (0.0, 3.0)}, flops=8.0)
    work = {"n_train": 10, "test_points": 2, "layers": 3, "flops_per_image": 4, "train": {"images": 7}}
    work |= {"cg_ggn": {"products": 5}, "identity": {"products": 0}}
    assert model.predict(work) == {
        "train": 7 * (1 + 0.5 * 4),
        "cg_ggn": (10 * 5 + 0.5 * 10 * 2) * (2 + 4),
        "identity": 10 * 2 * 12 + 0.5 * 10 * 2 * 6,
    }
    assert [model.forward_passes(kind) for kind in model.coefficients] == [3, 3 * 10 / 5, 3 * 24 / 5]
    assert model.computing == 0.8
    batches = {"step": 2, "gauss_newton": 100, "hessian": 100}
    # two operations a second: 4 / 2 seconds for an image; a pass of 3 layers takes at least 9, in a batch of 2 4.5 each
    found = model.accelerator_seconds(work, batches=batches, rate=2, launch=3)
    assert found == pytest.approx({"train": 7 * 3 * 4.5, "cg_ggn": 60 * 6 * 2, "identity": 20 * 14.4 * 2 + 10 * 6 * 2})
    for bad in ({"rate": 0}, {"launch": -1}, {"batches": batches | {"step": 0}}):
        with pytest.raises(InputError, match="above 0|or more"):
            model.accelerator_seconds(work, **({"batches": batches, "rate": 2, "launch": 3} | bad))


def test_bad_works_are_named():
    with pytest.raises(InputError, match="2 distinct networks"):
        cost.fit(make_works(repeats=3, networks={k: NETWORKS[k] for k in ("lenet", "vgg13")}))
    with pytest.raises(InputError, match="2 distinct networks"):
        cost.held_out_errors(make_works()[:3])
    works = make_works()
    works[0]["lissa"]["seconds"] = 0.0
    with pytest.raises(InputError, match="seconds"):
        cost.fit(works)
    works[0]["lissa"]["seconds"], works[1]["train"]["images"] = 1.0, 0
    with pytest.raises(InputError, match="train"):
        cost.fit(works)
    some = cost.fit([{k: v for k, v in w.items() if k not in ("lissa", "ekfac")} for w in make_works()])
    with pytest.raises(InputError, match="small_batch"):
        some.predict(make_works()[0])
    with pytest.raises(InputError, match="no_such"):
        cost.image_passes(make_works()[0], "no_such")


def test_the_size_of_a_network_by_hand():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Identity(), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    module.train()
    size = planned.size_of(module, (1, 6, 6))
    assert size.flops_per_image == 2 * 16 * 2 * 9 + 2 * 32 * 3
    assert (size.n_params, size.activations, size.layers) == (20 + 4 + 99, 32 + 32 + 32 + 3, 4)
    assert module.training and module[0].weight.device.type == "cpu" and not module[0]._forward_hooks


def test_memory_by_hand():
    size = planned.NetworkSize(1, n_params=1_000, activations=50, layers=1)
    numbers = 1_000 * (1 + 1 + 2 + 6 * 3) + 10 * 50 * (1 + 3)
    assert planned.run_memory_mb(size, test_points=3, chunk=10) == pytest.approx(4 * numbers / 1e6)
    more = planned.run_memory_mb(size, 20, 10, "sgd")
    assert more == pytest.approx(4 * (1_000 * (2 + 120) + 500 * 9) / 1e6)
    with pytest.raises(InputError, match="optimiser"):
        planned.run_memory_mb(size, 3, 10, "lbfgs")


@pytest.mark.parametrize("steps", [3, 4, 9])
def test_retraining_counts_the_images_of_the_real_one(steps):
    n, batch = 20, 5
    x, y = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 2
    start = train(nn.Linear(3, 2), x, y, Schedule(4, batch, 0.1, "sgd"), 0.0)
    each = [np.array([i]) for i in range(n)]
    real = go_on_without(start, (x, y), (x[:2], y[:2]), Schedule(steps, batch, 0.1, "sgd", seed=1), 0.0, each)
    assert planned.retraining_images(n, batch, steps, removals=n) == pytest.approx(real.images)


def test_groups_come_up_sooner():
    singles, groups = (planned.retraining_images(1_000, 10, 100, removals=1, size=k) for k in (1, 4))
    # the first of k images of an epoch's 100 batches: at batch 50.5 and, in the continuous limit, 100 / 5 + 1 / 2
    assert singles == pytest.approx(10 * (100 + 50.5)) and groups == pytest.approx(10 * (200 - 20 + 0.5), rel=1e-3)


def test_a_planned_run_counts_what_a_real_one_does():
    options = {"lissa_depth": 4, "lissa_batch": 5, "lissa_scale": 0.0, "cg_iterations": 2}
    n, batch, epochs = 22, 5, 2
    draw = torch.Generator().manual_seed(0)
    data = Data(torch.randn(1, n, 1, 12, 12, generator=draw), (torch.arange(n) % 3)[None])
    module, schedule = build("lenet", 1, 12, 3), Schedule(epochs * (n // batch), batch, 0.01)
    real = network.prepare(module, 3, data, data, 0.01, 0.01, schedule, "none", 10, "cpu")
    points = choose_test_points(real.test.losses(real.theta[None])[0], {"max_loss": 1, "p50_loss": 1})
    names = ["lissa", "cg_ggn"]
    estimates = {name: estimators.estimate_by(real, points, name, **options) for name in names}
    left_out = [np.array([i]) for i in range(3)]
    some = [part[points.index] for part in real.train_images]
    real_work = real.work(estimates, go_on_without(real.trained, real.train_images, some, schedule, 0.01, left_out))

    run = options | {"n_train": n, "test_count": 1, "batch": batch, "epochs": epochs, "retrain_fraction": 1.0}
    run |= {"train_count": 1, "repeat": False, "group_count": 0, "estimators": names}
    plan = planned.planned_work(planned.size_of(module, (1, 12, 12)), run, "lenet")
    assert (plan["flops_per_image"], plan["n_params"]) == (real_work["flops_per_image"], real_work["n_params"])
    assert plan["train"]["images"] == real_work["train"]["images"] and plan["test_points"] == len(points.index)
    assert plan["retrain"]["images"] == planned.retraining_images(n, batch, schedule.steps, removals=3)
    for name in names:
        assert plan[name]["products"] == pytest.approx(real_work[name]["products"]), name
    repeated = planned.planned_work(planned.size_of(module, (1, 12, 12)), run | {"repeat": True})
    more = repeated["retrain"]["images"] - plan["retrain"]["images"]
    assert more == planned.retraining_images(n, batch, schedule.steps, removals=1)

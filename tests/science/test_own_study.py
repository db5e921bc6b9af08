"""A network of one's own by its door: against dense float64 references, however the data come; and what is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from test_any_module import C, ce, draw, labels, made, slope
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from fragile_lib.data.sets import Data
from fragile_lib.minimise.modules import train
from fragile_lib.minimise.schedule import Schedule
from fragile_lib.objectives.base import Objective
from fragile_lib.objectives.losses import CROSS_ENTROPY, CrossEntropy, SquaredError
from fragile_lib.own import Studied, leave_out_again, study_model
from fragile_lib.own import examples as own_examples
from fragile_lib.own import network as own_network
from fragile_lib.own.examples import DatasetObjective, objective_of
from fragile_lib.own.modules import model_of
from fragile_lib.own.network import network_of
from fragile_lib.solvers import trak
from fragile_lib.tools.errors import InputError

N, M, DECAY, DAMPING = 14, 3, 0.05, 0.2
EXACT = {"estimator": "exact", "weight_decay": DECAY, "damping": DAMPING, "device": "cpu", "chunk": 4}


def net() -> nn.Module:
    return made(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, C)))


def examples(n: int) -> tuple[Tensor, Tensor]:
    return draw(n, 5, seed=n), labels(n, seed=n)


def reference(module: nn.Module, measure, names: list[str], decayed: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(scores (n, m), self-influence (n,)) in the named parameters, by plain autograd."""
    (x, y), (xt, yt) = examples(N), examples(M)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)
    held = nn.Module()
    held.chosen = nn.ParameterList([p for p in module.parameters() if p.requires_grad])
    each = torch.stack([slope(ce(module(x[[i]]), y[[i]]).sum(), held) for i in range(N)])
    test = torch.stack([slope(measure(module(xt[[j]]), yt[[j]]).sum(), held) for j in range(M)])
    gradient = slope(ce(module(x), y).mean(), held, graph=True)
    rows = torch.stack([slope(g, held, graph=True).detach() for g in gradient])
    marks = [torch.full((p.numel(),), float(n in decayed)) for n, p in module.named_parameters() if n in names]
    damped = rows + torch.diag(DECAY * torch.cat(marks).double() + DAMPING)
    solved = torch.linalg.solve(damped, torch.cat([test, each]).T) / N
    return (each @ solved[:, :M]).numpy(), (each.T * solved[:, M:]).sum(0).numpy()


ALL = ["0.weight", "0.bias", "2.weight", "2.bias"]


def margin(z: Tensor, y: Tensor) -> Tensor:
    p = z.softmax(1).gather(1, y[:, None])[:, 0]
    return (p / (1 - p)).log()


@pytest.mark.parametrize(
    ("options", "names", "decayed", "measure"),
    [
        ({}, ALL, ALL, ce),
        ({"decayed": "weights"}, ALL, ["0.weight", "2.weight"], ce),
        ({"decayed": ["2", "0.bias"]}, ALL, ["2.weight", "2.bias", "0.bias"], ce),
        ({"parameters": "last"}, ALL[2:], ALL[2:], ce),
        ({"parameters": ["0.weight", "2.bias"], "decayed": "weights"}, ["0.weight", "2.bias"], ["0.weight"], ce),
        ({"measurement": "margin"}, ALL, ALL, margin),
        ({"measurement": "logit"}, ALL, ALL, lambda z, y: z.gather(1, y[:, None])[:, 0]),
        ({"measurement": lambda z, y: z.square().sum(1)}, ALL, ALL, lambda z, y: z.square().sum(1)),
    ],
    ids=["all", "weights decay", "some decay", "last layer", "named", "margin", "logit", "own measurement"],
)
def test_scores_are_the_dense_ones(options, names, decayed, measure):
    want, itself = reference(net(), measure, names, decayed)
    found = study_model(net(), CROSS_ENTROPY, examples(N), examples(M), self_influence=range(N), **EXACT, **options)
    np.testing.assert_allclose(found.scores, want, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.self_influence, itself, rtol=1e-8)
    x, y = examples(M)
    np.testing.assert_allclose(found.test_values, measure(net()(x), y).detach(), rtol=1e-10)
    assert found.residual < 1e-10 and found.certificate["n_params"] == sum(
        p.numel() for n, p in net().named_parameters() if n in names
    )


class Shared(nn.Module):
    """A layer with two names, alone and within a block that has two itself."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(4, 4)
        block = nn.Sequential(layer, nn.Tanh(), layer)
        self.parts = nn.Sequential(nn.Linear(5, 4), block, nn.Tanh(), block, layer, nn.Linear(4, C))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


@pytest.mark.parametrize("estimator", ["exact", "cg"])
def test_a_layer_of_two_names_is_one(estimator):
    names = [name for name, _ in made(Shared).named_parameters()]
    want, _ = reference(made(Shared), ce, names, names)
    how = {**EXACT, "estimator": estimator, "options": {} if estimator == "exact" else {"tolerance": 1e-12}}
    found = study_model(made(Shared), CROSS_ENTROPY, examples(N), examples(M), **how)
    np.testing.assert_allclose(found.scores, want, rtol=1e-7, atol=1e-12)


class Lazy(Dataset):
    """Makes each example when it is asked for, and counts."""

    def __init__(self, n: int) -> None:
        self.x, self.y = examples(n)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        self.asked.append(i)
        return self.x[i], self.y[i]


@pytest.mark.parametrize(
    "estimator", ["exact_ggn", "cg_ggn", "cg", "ekfac", "gram_ggn", "lissa_partition", "identity", "nystroem"]
)
def test_it_is_the_same_however_the_data_come_and_in_whatever_order_a_loader_draws(estimator):
    options = {"lissa_partition": {"batch": 5, "depth": 100}, "nystroem": {"rank": 6}}.get(estimator, {})
    settings = {**EXACT, "estimator": estimator, "options": options, "self_influence": [3, 0]}
    want = study_model(net(), CROSS_ENTROPY, examples(N), examples(M), **settings)
    shuffled = DataLoader(Lazy(N), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(1))
    for data in (TensorDataset(*examples(N)), Subset(Lazy(N), range(N)), shuffled):
        found = study_model(net(), CROSS_ENTROPY, data, DataLoader(Lazy(M)), **settings)
        np.testing.assert_allclose(found.scores, want.scores, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(found.self_influence, want.self_influence, rtol=1e-7)
        np.testing.assert_allclose(list(found.certificate.values()), list(want.certificate.values()), rtol=1e-6)


def test_a_dataset_is_streamed_and_not_kept():
    data = Lazy(N)
    study_model(net(), CROSS_ENTROPY, data, examples(M), **{**EXACT, "estimator": "cg_ggn"})
    counts = np.bincount(data.asked)
    assert counts.min() > 1  # fetched for the curvature, and for the scores anew
    objective = DatasetObjective(model_of(net(), C), data, default_collate, DECAY, 4, CROSS_ENTROPY)
    objective.losses(objective.model.theta[None])
    assert "data" not in vars(objective) and objective.n == N


def test_helpful_examples_are_those_whose_removal_makes_things_worse():
    found = study_model(net(), CROSS_ENTROPY, examples(N), examples(M), **EXACT)
    helpful, harmful = found.helpful(1, 4), found.harmful(1, 4)
    column = found.scores[:, 1]
    assert [i for i, _ in helpful] == np.argsort(-column)[:4].tolist() and all(score > 0 for _, score in helpful)
    assert [i for i, _ in harmful] == np.argsort(column)[:4].tolist() and all(score < 0 for _, score in harmful)
    by_margin = study_model(net(), CROSS_ENTROPY, examples(N), examples(M), measurement="margin", **EXACT)
    assert [i for i, _ in by_margin.helpful(1, 4)] == np.argsort(by_margin.scores[:, 1])[:4].tolist()
    assert {i for i, _ in by_margin.helpful(1, 4)} & {i for i, _ in helpful}  # of one network and example


def test_a_residual_of_one_or_more_is_never_called_ok():
    """The gradient product is far from the damped inverse where curvature is."""
    wide = (20 * examples(N)[0], examples(N)[1])
    found = study_model(net(), CROSS_ENTROPY, wide, examples(M), **{**EXACT, "estimator": "identity", "damping": 3.0})
    assert found.residual >= 1 and found.status == "not_converged"
    exact = study_model(net(), CROSS_ENTROPY, wide, examples(M), **{**EXACT, "estimator": "exact_ggn"})
    assert exact.residual < 1e-8 and exact.status == "ok"


@pytest.mark.parametrize("estimator", ["identity", "ekfac", "kfac", "datainf"])
def test_an_approximate_inverse_can_do_without_its_residual_and_says_so(estimator):
    how = {**EXACT, "estimator": estimator}
    want, found = (
        study_model(net(), CROSS_ENTROPY, examples(N), examples(M), self_influence=[2], options=options, **how)
        for options in ({}, {"residual": False})
    )
    np.testing.assert_allclose(found.scores, want.scores, rtol=1e-12)
    np.testing.assert_array_equal(found.self_influence, want.self_influence)
    assert np.isnan(found.residual) and found.status == "not_converged" and np.isfinite(want.residual)


TRAK = EXACT | {"estimator": "trak"}


@pytest.mark.parametrize("dim", [4, 512], ids=["projected", "more numbers than parameters"])
def test_trak_is_the_estimator_of_that_name(dim):
    data = Subset(Lazy(N), range(N))
    found = study_model(net(), CROSS_ENTROPY, data, examples(M), options={"dim": dim, "damping": 0.02}, **TRAK)
    network = network_of(net(), CROSS_ENTROPY, examples(N), examples(M))
    given = network.train, network.test, network.theta[None], -torch.eye(N).double() / N, torch.arange(M)
    want = trak(*given, dim=dim, damping=0.02)
    np.testing.assert_allclose(found.scores, want, rtol=1e-8, atol=1e-14)
    assert found.status == "ok" and np.isnan(found.residual) and np.isnan(found.self_influence).all()


def test_trak_without_numbers_has_diverged_and_without_an_inverse_is_refused():
    x, y = examples(N)
    void = (x.clone().index_fill_(0, torch.tensor([3]), torch.nan), y)
    assert study_model(net(), CROSS_ENTROPY, void, examples(M), **TRAK).status == "solver_diverged"
    with pytest.raises(InputError, match="^damping = 1e-12: .*no inverse"):
        study_model(net().float(), CROSS_ENTROPY, (x, y), examples(M), options={"damping": 1e-12}, **TRAK)


def test_what_solves_by_its_residual_keeps_it():
    how = {**EXACT, "estimator": "cg", "options": {"residual": False}}
    with pytest.raises(InputError, match="^residual = False"):
        study_model(net(), CROSS_ENTROPY, examples(N), examples(M), **how)


@pytest.mark.parametrize("plain", [False, True], ids=["torch.func", "reverse mode"])
@pytest.mark.parametrize("small", [0, 2**22], ids=["large", "small"])
def test_small_data_take_shorter_ways_to_the_same_numbers(monkeypatch, small, plain):
    """Against the objective of the study, in chunks and whole; the ways are seen by their calls."""
    monkeypatch.setattr(own_examples, "SMALL", small)
    model, (x, y) = model_of(net(), C), examples(N)
    ours = objective_of(model, (x, y), DECAY, 4, CROSS_ENTROPY)
    plainly = Objective(model, Data(x[None], y[None]), DECAY)
    ours.plain = plain
    theta, draw = model.theta[None], torch.Generator().manual_seed(0)
    v = torch.randn(1, 35, theta.shape[1], generator=draw, dtype=theta.dtype)  # more than go back at once
    weights = torch.rand(1, N, generator=draw, dtype=theta.dtype)
    pulled, called = [], own_examples.OwnObjective._pulled
    monkeypatch.setattr(own_examples.OwnObjective, "_pulled", lambda *a: pulled.append(1) or called(*a))
    close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-13)
    for some in (v, v[:, :2]):
        close(ours.directional(theta, some), plainly.directional(theta, some))
    close(ours.products(theta, v, weights), plainly.products(theta, v, weights))
    many, each = theta.expand(3, -1), torch.eye(3, N, dtype=theta.dtype)
    close(ours.gradient(many, each), plainly.gradient(many, each))
    assert bool(pulled) == bool(small) == ours.few


def test_a_certificate_takes_its_pass_when_it_is_read_and_no_other(monkeypatch):
    asked, measure = [], own_network.of_objectives
    monkeypatch.setattr(own_network, "of_objectives", lambda *given: asked.append(1) or measure(*given))
    found = study_model(net(), CROSS_ENTROPY, examples(N), examples(M), **EXACT | {"estimator": "identity"})
    assert not asked
    (x, y), module = examples(N), net()
    value = ce(module(x), y).mean() + DECAY / 2 * sum(p.square().sum() for p in module.parameters())
    told = {
        "grad_norm": slope(value, module).norm(),
        "objective": value.detach(),
        "n": N,
        "n_params": len(found.network.theta),
    }
    np.testing.assert_allclose(list(found.certificate.values()), list(told.values()))
    assert list(found.certificate) == list(told) and repr(dict(found.certificate)) in repr(found) and len(asked) == 1
    assert {"n": 0, "a": 1} | found.certificate == {"a": 1} | dict(found.certificate)
    assert found.certificate | {"n": 0} == dict(found.certificate) | {"n": 0}


def test_a_study_is_saved_and_read(tmp_path):
    found = study_model(net(), CROSS_ENTROPY, examples(N), examples(M), self_influence=[2], **EXACT)
    again = Studied.load(found.save(tmp_path / "new" / "scores.safetensors"))
    for name in ("scores", "test_values", "self_influence"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert again.certificate == found.certificate and again.network is None
    assert (again.status, again.residual, again.estimator) == (found.status, found.residual, "exact")
    with pytest.raises(InputError, match="^studied = "):
        leave_out_again(again, [0], lambda rows, seed: net())
    (tmp_path / "other").write_bytes(b"nothing")
    for name in ("missing", "other"):
        with pytest.raises(InputError, match="^path = .*Studied.save"):
            Studied.load(tmp_path / name)


# -- leaving out for real --------------------------------------------------------------------------------------------


def targets(n: int) -> tuple[Tensor, Tensor]:
    x = draw(n, 5, seed=n)
    return x, x @ torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0], dtype=torch.float64) + 0.5 * draw(n, seed=n + 1)


def ridge(rows: np.ndarray, seed: int, noise: float = 0.0) -> nn.Module:
    """The minimum of J with weights 1/n on the rows, all parameters decayed; noise: a start that is not forgotten."""
    x, y = targets(40)
    design = torch.cat([x, torch.ones(40, 1)], 1)[torch.from_numpy(rows)]
    hessian = design.T @ design / 40 + DECAY * torch.eye(6)
    theta = torch.linalg.solve(hessian, design.T @ y[torch.from_numpy(rows)] / 40)
    theta = theta + noise * draw(6, seed=1000 * seed + int(rows.sum()))
    module = nn.Linear(5, 1).double()
    nn.utils.vector_to_parameters(theta, module.parameters())
    return module.eval()


def regression_study() -> Studied:
    settings = {**EXACT, "damping": 0.0}
    return study_model(ridge(np.arange(40), 0), SquaredError(), targets(40), targets(M), **settings)


def test_scores_of_a_minimum_agree_with_leaving_out_for_real():
    study = regression_study()
    truths = leave_out_again(study, range(40), ridge, repeats=2)
    told = study.agreement(truths)
    assert (told.spearman > 0.98).all() and (told.slope > 1).all() and (told.slope < 1.6).all()  # leverage
    np.testing.assert_allclose(told.reliability, 1, rtol=1e-9)
    assert truths["scratch_fit"].repeats.shape == (2, 40, M)


def test_groups_and_masks_are_left_out_as_a_whole_and_one_by_one():
    study = regression_study()
    mask = np.arange(40) < 3
    truths = leave_out_again(study, [mask, [5, 9]], ridge, repeats=1)
    groups = truths["scratch_fit"]
    assert groups.removals.members == ((0, 1, 2), (5, 9))
    np.testing.assert_allclose(study.on(groups.removals)[0], study.scores[:3].sum(0))
    x, y = targets(M)
    lost = [(m(x)[:, 0] - y).square().detach() / 2 for m in (ridge(np.arange(3, 40), 0), ridge(np.arange(40), 0))]
    np.testing.assert_allclose(groups.changes[0], lost[0] - lost[1], rtol=1e-9)
    assert leave_out_again(study, mask, ridge, repeats=1)["scratch_fit"].removals.members == ((0,), (1,), (2,))
    assert np.isnan(study.agreement(truths).reliability).all()  # of one repetition nothing is known


def test_going_on_by_a_schedule_is_the_warm_truth_beside_its_control():
    how = Schedule(40, 10, 1e-3, drops=())
    study = study_model(net(), CROSS_ENTROPY, examples(N), examples(M), **EXACT | {"decayed": "weights"})
    truths = leave_out_again(study, [1, 3, 5, 7], schedule=how, repeats=2)
    assert set(truths) == {"warm_minibatch", "warm_minibatch_minus_control"}
    held, (x, y), (xt, yt) = net(), examples(N), examples(M)
    gone = train(held, x, y, how, DECAY, [3]).module, train(held, x, y, how, DECAY).module
    lost = [ce(one(xt), yt).detach() for one in gone]
    np.testing.assert_allclose(truths["warm_minibatch_minus_control"].repeats[0][1], lost[0] - lost[1], rtol=1e-9)
    assert set(study.agreement(truths).ground_truth) == set(truths)
    with pytest.raises(InputError, match="^decayed = "):  # what the schedule's optimiser would not decay
        leave_out_again(study_model(net(), CROSS_ENTROPY, examples(N), examples(M), **EXACT), [1], schedule=how)
    for given in ({}, {"fit": ridge, "schedule": how}):
        with pytest.raises(InputError, match="^fit = "):
            leave_out_again(study, [1], **given)


# -- refusals --------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class Batchwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x - x.mean(0))


class Random(Batchwise):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.dropout(x, 0.5))


class Squeezed(nn.Module):
    """An axis of length one is lost with the examples' own, where there is one example."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.out = nn.Linear(5, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x).squeeze()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"module": Squeezed(1)}, r"^module\(x\).shape = \(\).*squeeze\(-1\)"),
        ({"module": Squeezed(C)}, r"^module\(x\).shape = .*squeeze\(-1\)"),
        ({"module": nn.Sequential(nn.Linear(5, C), nn.Dropout())}, "^module.1 = 'Dropout'.*eval"),
        ({"module": Batchwise()}, "^module = 'Batchwise'.*other examples"),
        ({"module": Random()}, "^module = 'Random'.*chance"),
        ({"module": nn.Linear(5, C).bfloat16()}, "^module = .*bfloat16"),
        ({"train": examples(N)[0]}, "^data = 'Tensor'"),
        ({"train": (examples(N)[0], examples(M)[1])}, "^data = .*equal length"),
        ({"train": examples(0)}, "^train = "),
        ({"test": (examples(M)[0], examples(M)[1] + 3)}, "^labels = "),
        ({"train": [1, 2]}, "^data = 'list'"),
        ({"train": Stream()}, "^dataset = 'Stream'"),
        ({"train": TensorDataset(draw(N, 5))}, r"^dataset\[i\] = "),
        ({"loss": "mse"}, "^loss = 'mse'"),
        ({"weight_decay": "0.1"}, "^weight_decay = '0.1'"),
        ({"damping": -1.0}, "^damping = -1.0"),
        ({"estimator": "exactly"}, "^estimator = 'exactly'"),
        ({"measurement": "accuracy"}, "^measurement = 'accuracy'"),
        (
            {
                "measurement": "margin",
                "loss": CrossEntropy(ignore_index=-1),
                "test": (examples(M)[0], torch.full((M,), -1)),
            },
            "^measurement = 'margin'",
        ),
        ({"parameters": ["out"]}, "^parameters = 'out': "),
        ({"decayed": ["0.weigth"]}, "^decayed = '0.weigth': did you mean '0.weight'"),
        ({"self_influence": [N]}, r"^self_influence = \(14,\)"),
        ({"chunk": 0}, "^chunk = 0"),
        ({"estimator": "trak", "self_influence": [0]}, r"^self_influence = \[0\]: trak"),
        ({"estimator": "trak", "measurement": "margin"}, "^measurement = 'OwnLoss'"),
        ({"estimator": "trak", "loss": CrossEntropy(label_smoothing=0.1)}, "^loss = 'CrossEntropy'"),
        ({"estimator": "trak", "options": {"damping": 0}}, "^damping = 0"),
        ({"loss": lambda z, y: ce(z, y).mean()}, r"^loss\(outputs, targets\) = \(\)"),
    ],
)
def test_what_cannot_be_taken_is_named(change, match):
    given = {"module": net(), "loss": CROSS_ENTROPY, "train": examples(N), "test": examples(M), **EXACT} | change
    with pytest.raises(InputError, match=match):
        study_model(**given)


@pytest.mark.parametrize(
    ("removals", "fit", "repeats", "match"),
    [
        ([40], ridge, 1, r"^removals = \(40,\)"),
        ([], ridge, 1, "^removals = "),
        (None, ridge, 1, "^removals = None"),
        (3, ridge, 1, "^removals = 3"),
        ([1, [2, 3]], ridge, 1, "^removals = "),
        ([[1], []], ridge, 1, "^removals = .*none of them empty"),
        (np.zeros(40, bool), ridge, 1, "^removals = .*none of them empty"),
        ([0], ridge, 0, "^repeats = 0"),
        ([0.5], ridge, 1, "^removals = "),
        ([0], lambda rows, seed: None, 1, "^fit"),
    ],
)
def test_removals_and_fits_that_are_none_are_refused(removals, fit, repeats, match):
    with pytest.raises(InputError, match=match):
        leave_out_again(regression_study(), removals, fit, repeats)


def test_test_examples_and_truths_that_are_none_are_refused():
    study = regression_study()
    for places in ([M], [-1], [0.5]):
        with pytest.raises(InputError, match="^places = "):
            study.at(places)
    with pytest.raises(InputError, match="^truths = "):
        study.agreement({})


def test_the_user_keeps_module_and_data_as_they_were():
    module, train = net(), examples(N)
    module[0].requires_grad_(False)
    before = [p.clone() for p in module.parameters()], train[0].clone()
    study_model(module, CROSS_ENTROPY, train, examples(M), parameters="last", **EXACT)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before[0], strict=True))
    assert torch.equal(train[0], before[1]) and not module[0].weight.requires_grad and module[2].weight.requires_grad


@pytest.mark.parametrize("module", [None, torch.tanh, {"a": 1}])
def test_what_is_no_module_is_refused_by_name(module):
    x, y = torch.rand(6, 3), torch.arange(6) % 2
    with pytest.raises(InputError, match="^module = .*torch.nn.Module"):
        study_model(module, CROSS_ENTROPY, (x, y), (x, y))


def test_a_module_that_cannot_be_copied_is_refused_with_what_to_take():
    x, y = torch.rand(6, 3), torch.arange(6) % 2
    normed = torch.nn.utils.weight_norm(nn.Linear(3, 2))
    normed(x)
    with pytest.raises(InputError, match="parametrizations.weight_norm"):
        study_model(nn.Sequential(normed), CROSS_ENTROPY, (x, y), (x, y))


def test_fits_and_files_that_are_none_are_refused_by_name(tmp_path):
    x, y = torch.rand(6, 3), torch.arange(6) % 2
    studied = study_model(nn.Linear(3, 2), CROSS_ENTROPY, (x, y), (x, y), damping=0.1)
    with pytest.raises(InputError, match="^fit = 3: give a function"):
        leave_out_again(studied, [0], 3)
    with pytest.raises(InputError, match="Dropout.*eval"):
        leave_out_again(studied, [0], lambda rows, seed: nn.Sequential(nn.Linear(3, 2), nn.Dropout()))
    with pytest.raises(InputError, match="^path = .*give a file"):
        studied.save(tmp_path)


def test_random_batches_without_numbers_have_the_outcome_of_all_solvers():
    x, y = torch.rand(10, 3).double(), torch.arange(10) % 2
    x[3, 0] = torch.nan
    how = {"estimator": "lissa_random", "options": {"batch": 5}, "damping": 0.5}
    found = study_model(nn.Linear(3, 2).double(), CROSS_ENTROPY, (x, y), (x[:2], y[:2]), **how)
    assert found.status == "solver_diverged" and np.isnan(found.changes).all()

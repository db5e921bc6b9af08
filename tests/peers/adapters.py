"""Each library's way to scores, brought to our sign and scale: loss after the removal minus before it, (n, m).

All give positive numbers to helpful examples. What has to be done to them stands in `CONVENTIONS`.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from problems import Problem
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from fragile_lib.choices import Points
from fragile_lib.own.projected import trak
from fragile_lib.own.studied import scores_of, solver_of

TOLERANCE, ITERATIONS = 1e-6, 200
# library: what its score is, and the factor that makes ours of it.
CONVENTIONS = {
    "captum": ("grad f^T (H_sum + reg)^-1 grad loss_i, H_sum summed over the examples; reg = n (decay + damping)", "1"),
    "captum, TracIn": ("the sum over checkpoints of grad f . grad loss_i", "1 / n"),
    "dattri": ("grad f^T (H_mean + reg)^-1 grad loss_i; reg = decay + damping", "1 / n"),
    "kronfluence": ("grad f^T (F_mean + damping)^-1 grad loss_i; its damping = decay + damping", "1 / n"),
    "curvlinops": ("the matrix and its inverse alone; the two products are the caller's", "1 / n"),
    "torch-influence": ("grad f^T (H_mean + damp)^-1 grad loss_i / n", "1"),
    "traker": ("margins, not losses: the margin that example i gives to the test example", "1 - p of the test label"),
}


# -- this library --------------------------------------------------------------------------------------------------


def ours(name: str, problem: Problem, passes: str = "network", **options: object) -> Tensor:
    """By `study_model`'s solvers: as for any module (`network`), or by the passes of the study's own (`compiled`).

    `residual=False` leaves out what the others do not measure either.
    """
    network, m = getattr(problem, passes)(), len(problem.y_test)
    found = scores_of(network, Points(np.arange(m), ["all"] * m), solver_of(name, network, **options))
    return torch.from_numpy(found.changes)


def ours_trak(problem: Problem) -> Tensor:
    """By `study_model`'s TRAK, in float32, which is all that the other takes."""
    m = len(problem.y_test)
    return torch.from_numpy(trak(problem.single().network(), Points(np.arange(m), ["all"] * m)).changes)


# -- captum ----------------------------------------------------------------------------------------------------------


def captum(kind: str, problem: Problem, shuffle: bool = False, **options: object) -> Tensor:
    """NaiveInfluenceFunction, ArnoldiInfluenceFunction or TracInCP, with its fast per-example gradients."""
    from captum.influence import TracInCP
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
    from captum.influence._core.influence_function import NaiveInfluenceFunction

    made = {"exact": NaiveInfluenceFunction, "arnoldi": ArnoldiInfluenceFunction, "tracin": TracInCP}[kind]
    train = DataLoader(problem.train, problem.n if kind != "tracin" else problem.chunk, shuffle=shuffle)
    given = {"loss_fn": nn.CrossEntropyLoss(reduction="sum"), "checkpoints_load_func": lambda module, path: 1.0}
    given |= {"sample_wise_grads_per_batch": True}
    if kind == "tracin":
        found = made(problem.module, train, [""], **given).influence((problem.x_test, problem.y_test))
        return found.detach().T / problem.n
    given |= {"hessian_reg": problem.n * problem.shift, "projection_dim": len(problem.theta)}
    return made(problem.module, train, "", **(given | options)).influence((problem.x_test, problem.y_test)).detach().T


# -- curvlinops ------------------------------------------------------------------------------------------------------


def curvlinops(kind: str, problem: Problem) -> Tensor:
    """Its matrix inverted, between the two products that are the caller's."""
    import curvlinops as lib
    from curvlinops.examples import IdentityLinearOperator

    parts = list(problem.module.parameters())
    data = list(DataLoader(problem.train, problem.chunk if kind == "cg" else problem.n))
    given = problem.module, nn.CrossEntropyLoss(), parts, data
    gradients = problem.gradients(problem.x_test, problem.y_test)
    if kind == "ekfac":
        exact = {"fisher_type": "type-2", "separate_weight_and_bias": False, "check_deterministic": False}
        operator = lib.EKFACLinearOperator(*given, **exact)
        inverse = lib.KFACInverseLinearOperator(operator, damping=problem.shift, use_exact_damping=True)
    else:
        operator = lib.GGNLinearOperator(*given, check_deterministic=False)
        identity = IdentityLinearOperator([p.shape for p in parts], parts[0].device, parts[0].dtype)
        shifted = operator + problem.shift * identity
        how = {"eps": 0.0, "tolerance": TOLERANCE, "max_iter": ITERATIONS, "max_tridiag_iter": 0}
        inverse = lib.CGInverseLinearOperator(shifted, **how)
    along = (inverse @ gradients.T).detach()
    return problem.gradients(problem.x, problem.y) @ along / problem.n


# -- dattri ----------------------------------------------------------------------------------------------------------


def dattri(kind: str, problem: Problem, batch: int | None = None, shuffle: bool = False, **options: object) -> Tensor:
    """IFAttributorExplicit, CG, Arnoldi or EKFAC, or TracInAttributor; `batch` of the loader for the curvature."""
    from dattri.algorithm import influence_function as lib
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    def loss(parameters: dict, pair: tuple) -> Tensor:  # of one example or of many; LiSSA makes labels float
        x, y = pair if pair[1].ndim else (part[None] for part in pair)
        return cross_entropy(functional_call(problem.module, parameters, (x,)), y.long())

    task = AttributionTask(loss, problem.module, problem.module.state_dict())
    every = DataLoader(problem.train, batch or problem.n, shuffle=shuffle)
    examples, tests = (DataLoader(part, problem.chunk) for part in (problem.train, problem.test))
    if kind == "tracin":
        made = TracInAttributor(task, torch.ones(1), normalized_grad=False)
        if not options.get("projected"):
            made.projector_kwargs = None  # it cannot be asked to leave gradients as they are
        return made.attribute(examples, tests).detach() / problem.n
    name = {"exact": "Explicit", "cg": "CG", "arnoldi": "Arnoldi", "lissa": "LiSSA", "ekfac": "EKFAC"}[kind]
    shift = {"damping" if kind in ("lissa", "ekfac") else "regularization": problem.shift}
    made = getattr(lib, f"IFAttributor{name}")(task, **shift, **options)
    made.cache(every)
    return made.attribute(examples, tests).detach() / problem.n


# -- kronfluence -----------------------------------------------------------------------------------------------------


def kronfluence(problem: Problem, seed: int = 0) -> Tensor:
    """EK-FAC, whose labels are drawn and not summed over: by torch's global generator."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch: tuple, model: nn.Module, sample: bool = False) -> Tensor:
            logits, y = model(batch[0]), batch[1]
            if sample:
                y = torch.multinomial(logits.detach().softmax(1), 1).flatten()
            return cross_entropy(logits, y, reduction="sum")

        def compute_measurement(self, batch: tuple, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    logging.getLogger("kronfluence").setLevel(logging.ERROR)
    task, batch, kind = Classification(), min(problem.n, 500), problem.theta.dtype

    def floating(arguments: type) -> dict[str, torch.dtype]:
        return {name: kind for name in arguments.__annotations__ if "dtype" in name and name != "amp_dtype"}

    with tempfile.TemporaryDirectory() as folder:
        module = prepare_model(deepcopy(problem.module), task)
        analyzer = Analyzer("peers", module, task, cpu=True, disable_tqdm=True, output_dir=folder)
        torch.manual_seed(seed)
        how = {"factor_args": FactorArguments(strategy="ekfac", **floating(FactorArguments))}
        analyzer.fit_all_factors("factors", problem.train, per_device_batch_size=batch, **how)
        asked = ScoreArguments(damping_factor=problem.shift, **floating(ScoreArguments))
        sizes = {"per_device_query_batch_size": len(problem.y_test), "per_device_train_batch_size": batch}
        analyzer.compute_pairwise_scores("scores", "factors", problem.test, problem.train, **sizes, score_args=asked)
        return analyzer.load_pairwise_scores("scores")["all_modules"].T.clone() / problem.n


# -- torch-influence, whose package is not on the registry: its method in our lines ----------------------------------


def torch_influence(kind: str, problem: Problem) -> Tensor:
    """AutogradInfluenceModule's inverse of a dense Hessian, or CGInfluenceModule: scipy, a test example at a time."""
    parts, tests = list(problem.module.parameters()), problem.gradients(problem.x_test, problem.y_test)
    slope = torch.autograd.grad(cross_entropy(problem.module(problem.x), problem.y), parts, create_graph=True)
    slope = torch.cat([g.flatten() for g in slope])

    def product(v: Tensor) -> Tensor:
        found = torch.autograd.grad(slope @ v, parts, retain_graph=True)
        return torch.cat([g.flatten() for g in found]) + problem.shift * v

    if kind == "exact":
        matrix = torch.stack([product(v) for v in torch.eye(len(slope)).to(slope)])
        along = torch.linalg.inv(matrix) @ tests.T
    else:
        operator = LinearOperator((len(slope),) * 2, lambda v: product(torch.from_numpy(v)).numpy(), dtype=np.float64)
        how = {"rtol": TOLERANCE, "maxiter": ITERATIONS}
        along = torch.from_numpy(np.stack([cg(operator, v.numpy(), **how)[0] for v in tests], axis=1))
    pairs = zip(problem.x.split(1), problem.y.split(1), strict=True)
    rows = [torch.autograd.grad(cross_entropy(problem.module(x), y), parts) for x, y in pairs]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]) @ along / problem.n


# -- traker ----------------------------------------------------------------------------------------------------------


def traker(problem: Problem, dim: int = 512, damping: float = 1e-3) -> Tensor:
    """TRAK in float32 with the projector for CPUs; its ridge is n times our damping, over its own scale of features."""
    from trak import TRAKer
    from trak.projectors import BasicProjector, ProjectionType

    problem = problem.single()
    module, parts = problem.module, len(problem.theta)
    projector = BasicProjector(parts, dim, 0, ProjectionType.normal, torch.device("cpu"))
    # Its features are ours times sqrt(dim / P), since it divides by sqrt(P) and draws with variance 1.
    given = {"projector": projector, "proj_dim": dim, "lambda_reg": problem.n * damping * dim / parts}
    given |= {"device": "cpu", "use_half_precision": False, "logging_level": logging.ERROR}
    with tempfile.TemporaryDirectory() as folder:
        task = TRAKer(module, "image_classification", problem.n, folder, **given)
        state = module.state_dict()
        task.load_checkpoint(state, model_id=0)
        for x, y in DataLoader(problem.train, problem.chunk):
            task.featurize((x, y), num_samples=len(y))
        task.finalize_features()
        task.start_scoring_checkpoint("test", state, 0, num_targets=len(problem.y_test))
        task.score((problem.x_test, problem.y_test), num_samples=len(problem.y_test))
        found = torch.tensor(np.array(task.finalize_scores("test"))).double()
        logits = module(problem.x_test).detach().double()
    return found * (1 - logits.softmax(1).gather(1, problem.y_test[:, None])[:, 0])


# -- all of them -----------------------------------------------------------------------------------------------------

# {method: {library: scores}}: ours first; what stands under one method is meant to be the same numbers.
METHODS: dict[str, dict[str, Callable[[Problem], Tensor]]] = {
    "exact": {
        "fragile_lib": partial(ours, "exact"),
        "captum": partial(captum, "exact"),
        "dattri": partial(dattri, "exact"),
        "torch-influence": partial(torch_influence, "exact"),
    },
    "cg": {
        "fragile_lib": partial(ours, "cg", tolerance=TOLERANCE, max_iterations=ITERATIONS),
        "torch-influence": partial(torch_influence, "cg"),
    },
    "cg_ggn": {
        "fragile_lib": partial(ours, "cg_ggn", tolerance=TOLERANCE, max_iterations=ITERATIONS),
        "curvlinops": partial(curvlinops, "cg"),
    },
    "ekfac": {
        "fragile_lib": partial(ours, "ekfac", residual=False),
        "curvlinops": partial(curvlinops, "ekfac"),
        "kronfluence": kronfluence,
        "dattri": partial(dattri, "ekfac"),
    },
    "identity": {
        "fragile_lib": partial(ours, "identity", residual=False),
        "captum": partial(captum, "tracin"),
        "dattri": partial(dattri, "tracin"),
    },
    "trak": {"fragile_lib": ours_trak, "traker": traker},
}
warnings.filterwarnings("ignore", category=UserWarning, module="captum|dattri|torch")

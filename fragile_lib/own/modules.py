"""A user's module as the model that is examined: all parameters or some, decayed all or in part, and nothing random."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from fragile_lib.models.module import ModuleModel
from fragile_lib.models.module import _check as check_constant
from fragile_lib.tools.errors import bad_input, did_you_mean

SAME = 1e-3  # outputs of an example alone and beside another may differ by this share, by rounding


def model_of(
    module: nn.Module, outputs: int, parameters: str | Sequence[str] = "all", decayed: str | Sequence[str] = "all"
) -> ModuleModel:
    """The module as theta (P,), x -> outputs; theta holds the chosen parameters alone, the others are constants.

    Args:
        module: in evaluation mode; to be given as a copy, of which parameters may become constants.
        outputs: C, the number of outputs.
        parameters: `all`; `last`: those of the last layer that has some; or names, or beginnings of names, as in
            `module.named_parameters()`.
        decayed: the parameters that weight decay acts on: `all`, as in torch.optim; `weights`: of two dimensions or
            more; or names or their beginnings.

    Raises:
        InputError: a name that none begins with, or what `ModuleModel` raises.
    """
    names = [name for name, _ in module.named_parameters()]
    _tie(module, set())
    if parameters != "all":
        chosen = set(_named("parameters", _last(module) if parameters == "last" else parameters, names))
        _fix(module, [parameter for name, parameter in module.named_parameters() if name not in chosen])
    model = ModuleModel(module, outputs)
    held = dict(module.named_parameters())
    if decayed != "weights":
        marked = list(held) if decayed == "all" else _named("decayed", decayed, list(held))
        ones = [torch.full((p.numel(),), float(name in marked)) for name, p in held.items()]
        model.is_weight = torch.cat(ones).double()
    return model


def check_module(module: object) -> None:
    """Refuse what cannot even be copied.

    Raises:
        InputError: no module, or one with a layer that `ModuleModel` refuses.
    """
    if not isinstance(module, nn.Module):
        raise bad_input("module", type(module).__name__, "give a trained torch.nn.Module")
    for name, part in module.named_modules():
        check_constant(name, part)


def outputs_of(module: nn.Module, x: Tensor) -> Tensor:
    """(k, ..., C) of a module that gives each of some examples x (k, ...) the same alone as with the others, always.

    Args:
        module: one that `ModuleModel` has taken: what it refuses may change when it is called.
        x: the examples.

    Raises:
        InputError: outputs that are no tensor, or that depend on chance or on other examples.
    """
    with torch.no_grad():
        found, *single = (module(some.clone()) for some in (x, *x.split(1)))
    for out, n in ((found, len(x)), *((one, 1) for one in single)):
        if not isinstance(out, Tensor):
            raise bad_input("module(x)", type(out).__name__, "wrap the module so that it returns its outputs alone")
        if not out.ndim or len(out) != n:
            remedy = f"give outputs ({n}, ...) of {n} examples, of one as of several: squeeze(-1), not squeeze()"
            raise bad_input("module(x).shape", tuple(out.shape), remedy)
    alone = torch.cat(single)
    size = float(found.abs().nan_to_num().max())
    if not torch.allclose(found, alone, rtol=SAME, atol=SAME * size, equal_nan=True):
        remedy = "outputs depend on chance or on the other examples; call module.eval(), take out what is random"
        raise bad_input("module", type(module).__name__, remedy)
    return found[:, None] if found.ndim == 1 else found


def _named(what: str, given: str | Sequence[str], names: list[str]) -> list[str]:
    """The names that are one of those given or begin with one and a dot."""
    wanted = [given] if isinstance(given, str) else list(given)
    for one in wanted:
        if not any(name == one or name.startswith(f"{one}.") for name in names):
            raise bad_input(what, one, did_you_mean(one, names))
    return [name for name in names if any(name == one or name.startswith(f"{one}.") for one in wanted)]


def _last(module: nn.Module) -> list[str]:
    """The names of the parameters of the last layer that has some."""
    names = [name for name, _ in module.named_parameters()]
    if not names:
        return []
    layer = names[-1].rpartition(".")[0]
    return [name for name in names if name.rpartition(".")[0] == layer]


def _tie(module: nn.Module, seen: set[nn.Module]) -> None:
    """Make a layer that has two names two layers with the same tensors.

    torch's `functional_call`, which exchanges parameters by their names, would leave those of its last call in it.
    """
    for name, child in module._modules.items():
        if child is None:
            continue
        if child in seen:
            held = {id(t): t for t in (*child.parameters(), *child.buffers())}
            child = module._modules[name] = deepcopy(child, held)
        seen.add(child)
        _tie(child, seen)


def _fix(module: nn.Module, constants: list[Tensor]) -> None:
    """Make buffers of some parameters, wherever they are used."""
    fixed = {id(parameter) for parameter in constants}
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if id(parameter) in fixed:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())

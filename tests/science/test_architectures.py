"""The larger networks against torchvision's, under torch.func, and with statistics that can be counted by hand."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.func import jvp, vjp, vmap
from torch.nn.functional import cross_entropy

from fragile_lib.models.architectures import (
    ARCHITECTURES,
    DEPTHS,
    INPUTS,
    NORMS,
    build,
    check_batch,
    frozen_statistics,
)
from fragile_lib.models.layers import groups_of
from fragile_lib.models.module import ModuleModel
from fragile_lib.models.small_cnn import SmallCNN
from fragile_lib.tools.errors import InputError

CASES = [
    *[(name, "batch") for name in ("small_cnn", "lenet")],
    *[(name, norm) for name in ARCHITECTURES[2:] for norm in NORMS],
]


def images(n, channels, size, kind=torch.float64, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=kind)


def n_params(module):
    return sum(p.numel() for p in module.parameters())


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def stored(module):
    return torch.cat([value.detach().double().flatten() for value in module.state_dict().values()])


def unfrozen(module, x, batch):
    """(mean, variance with divisor count - 1) of what each batch normalisation of `module` sees, batch by batch."""
    module, seen = deepcopy(module).train(), {}
    for name, part in module.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            seen[name] = []
            keep = seen[name]
            part.register_forward_pre_hook(
                lambda _, given, keep=keep: keep.append((given[0].mean((0, 2, 3)), given[0].var((0, 2, 3))))
            )
    with torch.no_grad():
        for part in x.split(batch):
            module(part)
    return seen


# -- the networks --------------------------------------------------------------------------------------------------


def test_the_small_networks_have_their_known_sizes():
    assert n_params(build("small_cnn", 1, 28, 10)) == 2616
    assert n_params(build("lenet", 1, 28, 10)) == 61706
    assert n_params(build("lenet", 3, 32, 10)) == 62006
    assert n_params(build("small_cnn", 3, 32, 100)) == 2616 + 16 * 9 + 90 * 9 + (100 * 101 - 10 * 11)
    assert n_params(build("small_cnn", 1, 28, 10, 2.0)) == SmallCNN(channels=16).n_params
    assert n_params(build("lenet", 1, 28, 10, 0.5)) == (3 * 26) + (8 * 76) + (60 * 201) + (42 * 61) + (10 * 43)


def test_the_small_cnn_is_koh_and_liangs_with_their_start():
    module, x = build("small_cnn", 1, 28, 10, seed=3).double(), images(4, 1, 28)
    model = ModuleModel(module, 10)
    torch.testing.assert_close(SmallCNN()(model.theta, x), module(x), rtol=1e-12, atol=1e-12)
    for layer in module:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            scale = 2 / math.sqrt(layer.weight[0].numel())
            assert 1.2 * scale < layer.weight.abs().max() <= 2 * scale
            assert not layer.bias.any()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_is_torchvisions_but_for_stem_and_head(name):
    ours = build(name, 3, 32, 10)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        assert shapes(getattr(ours, layer)) == shapes(getattr(theirs, layer))
    stem, head = 64 * 3 * (49 - 9), (1000 - 10) * (theirs.fc.in_features + 1)
    assert n_params(ours) == n_params(theirs) - stem - head


def test_a_resnet_computes_what_torchvisions_does():
    ours, x = build("resnet18", 3, 8, 1000), images(4, 3, 8, torch.float32)
    with torch.device("meta"):
        theirs = torchvision.models.resnet18()
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_the_strided_stem_has_the_same_parameters_and_a_quarter_of_the_pixels():
    small, strided = (build("resnet18", 3, 32, 10, 0.125, stem=stem) for stem in ("small", "strided"))
    x = images(1, 3, 32, torch.float32)
    assert torch.equal(stored(small), stored(strided))
    assert small.maxpool(small.conv1(x)).shape[2:] == (32, 32)
    torch.testing.assert_close(strided.maxpool(strided.conv1(x)), small.conv1(x)[:, :, ::2, ::2])


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_vgg13_is_torchvisions_but_for_its_head(norm):
    ours = build("vgg13", 3, 32, 10, norm=norm)
    with torch.device("meta"):
        theirs = torchvision.models.vgg13_bn() if norm == "batch" else torchvision.models.vgg13()
    assert shapes(ours.features) == shapes(theirs.features)
    assert n_params(ours) == n_params(theirs.features) + 513 * 10


def test_vgg14_has_one_more_convolution_in_its_last_block():
    thirteen, fourteen = (build(name, 1, 28, 10, 0.125, "none") for name in ("vgg13", "vgg14"))
    assert n_params(fourteen) - n_params(thirteen) == 64 * 64 * 9 + 64
    kinds = [type(part).__name__ for part in fourteen.features[-7:]]
    assert kinds == ["Conv2d", "ReLU"] * 3 + ["MaxPool2d"]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_logits_have_their_shape_in_either_memory_format(name, norm):
    for channels, size, classes in (INPUTS["mnist"], INPUTS["cifar100"]):
        for stem in ("small", "strided") if "resnet" in name else ("small",):
            module = build(name, channels, size, classes, 0.125, norm, stem)
            assert module.training and not any(getattr(part, "inplace", False) for part in module.modules())
            assert {p.dtype for p in module.parameters()} == {torch.float32}
            x = images(2, channels, size, torch.float32)
            before = module(x)
            assert before.shape == (2, classes)
            assert before.isfinite().all()
            last = module.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
            torch.testing.assert_close(last, before, rtol=1e-3, atol=1e-3)


def test_the_multiplier_scales_all_hidden_layers_and_rounds():
    def widths(name):
        layers = [part for part in build(name, 3, 32, 11, 0.3).modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        return [len(part.weight) for part in layers]

    blocks = [19, 38, 77, 154]
    assert widths("small_cnn") == [2] * 5 + [11, 11]
    assert widths("lenet") == [2, 5, 36, 25, 11]
    assert widths("vgg13") == [19, 19, 38, 38, 77, 77, *[154] * 4, 11]
    assert set(widths("resnet18")) == {*blocks, 11}
    assert set(widths("resnet50")) == {*blocks, *[4 * width for width in blocks], 11}


@pytest.mark.parametrize("name", ["vgg13", "resnet50"])
def test_norms_are_what_they_are_called(name):
    kinds = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm, "none": ()}
    for norm, kind in kinds.items():
        found = [part for part in build(name, 3, 32, 10, 0.125, norm).modules() if "Norm" in type(part).__name__]
        assert all(isinstance(part, kind) for part in found)
        assert len(found) == (0 if norm == "none" else {"vgg13": 10, "resnet50": 53}[name])


def test_groups_divide_the_channels_and_hold_two_where_possible():
    found = {channels: groups_of(channels) for channels in (1, 2, 3, 4, 5, 6, 8, 12, 24, 64, 96, 128, 150, 2048)}
    assert found == {
        1: 1, 2: 1, 3: 1, 4: 2, 5: 1, 6: 3, 8: 4, 12: 6, 24: 12, 64: 32, 96: 32, 128: 32, 150: 30, 2048: 32,
    }  # fmt: skip


def test_without_normalisation_a_resnet_learns_in_a_few_steps():
    module, x = build("resnet18", 1, 16, 2, 0.125, "none", "strided"), images(24, 1, 16, torch.float32)
    y = torch.arange(24) % 2
    x[y == 1] *= 0.3
    optimiser = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    for _ in range(31):
        optimiser.zero_grad()
        loss = cross_entropy(module(x), y)
        loss.backward()
        optimiser.step()
    assert loss < 0.2  # by fan out it is at 0.25


def test_the_start_goes_by_fan_out_with_normalisation_and_by_fan_in_without():
    for norm, fans in {"batch": (9 * 16, 9 * 32), "group": (9 * 16, 9 * 32), "none": (9, 9 * 16)}.items():
        vgg, resnet = (build(name, 1, 28, 10, 0.25, norm) for name in ("vgg13", "resnet18"))
        second = vgg.features[5 if norm == "none" else 7], resnet.layer2[0].conv1
        for stem, wider in zip((vgg.features[0], resnet.conv1), second, strict=True):
            assert wider.weight.shape[:2] == (32, 16)
            assert stem.weight.std().item() == pytest.approx(math.sqrt(2 / fans[0]), rel=0.2)
            assert wider.weight.std().item() == pytest.approx(math.sqrt(2 / fans[1]), rel=0.04)


def test_residual_branches_without_normalisation_start_at_zero():
    for name in ("resnet18", "resnet50"):
        for layer in build(name, 1, 8, 2, 0.125, "none").layer3[1:]:
            h = images(2, layer.conv1.in_channels, 4, torch.float32)
            assert torch.equal(layer(h), h)


# -- the start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_seed_alone_sets_the_start_and_the_global_generator_stays(name):
    make = partial(build, name, 1, 28, 10, 0.125)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make(seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            again = make(seed=7)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(stored(first), stored(again))
    assert not torch.equal(stored(first), stored(make(seed=8)))


def test_depths_are_of_layers_with_weights():
    for name in ("small_cnn", "lenet", "resnet18", "resnet50", "vgg13", "vgg14"):
        layers = [p for p in build(name, 3, 32, 10, 0.125, "none").named_modules() if "downsample" not in p[0]]
        found = sum(isinstance(part, nn.Conv2d | nn.Linear) for _, part in layers)
        assert found == DEPTHS[name] - (2 if "vgg" in name else 0)


# -- as functions of their parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_forward_mode_reverse_mode_and_differences_agree(name, norm):
    size, width = {"small_cnn": 21, "lenet": 12}.get(name, 17 if "vgg" in name else 8), 0.5
    module = build(name, 2, size, 3, width if name in ("small_cnn", "lenet") else 0.125, norm, seed=1).double()
    x = images(4, 2, size)
    frozen = frozen_statistics(module, x, 4)
    model = ModuleModel(frozen, 3)
    theta = model.theta
    assert torch.equal(model(theta, x), frozen(x))
    torch.testing.assert_close(model(theta, x[:1]), frozen(x)[:1], rtol=1e-10, atol=1e-10)  # each on its own
    draw = torch.Generator().manual_seed(5)
    theta = theta + 0.01 * torch.randn(len(theta), generator=draw, dtype=torch.float64)  # off the planted zeros
    v = torch.randn(2, len(theta), generator=draw, dtype=torch.float64)
    v /= v.norm(dim=1, keepdim=True)

    def logits(at):
        return model(at, x)

    tangents = vmap(lambda u: jvp(logits, (theta,), (u,))[1])(v)
    step = 1e-7  # short of the next kink
    for u, tangent in zip(v, tangents, strict=True):
        difference = (logits(theta + step * u) - logits(theta - step * u)) / (2 * step)
        torch.testing.assert_close(tangent, difference, rtol=0, atol=1e-5 * tangent.abs().max().item())
    pulled = vjp(logits, theta)[1](torch.ones(4, 3, dtype=torch.float64))[0]
    torch.testing.assert_close(v @ pulled, tangents.sum((1, 2)), rtol=1e-9, atol=1e-9)


# -- frozen statistics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [12, 4])
@pytest.mark.parametrize("name", ["vgg13", "resnet18"])
def test_frozen_statistics_are_the_averages_over_the_batches(name, batch):
    module, x = build(name, 2, 17, 3, 0.125, stem="strided").double(), images(12, 2, 17)
    with torch.no_grad():
        module(images(5, 2, 17, seed=9) * 50)  # running statistics that must be forgotten
    before = stored(module)
    frozen = frozen_statistics(module, x, batch)
    assert torch.equal(stored(module), before)
    assert module.training
    assert not any(part.training for part in frozen.modules())
    for at, seen in unfrozen(module, x, batch).items():
        part = frozen.get_submodule(at)
        assert len(seen) == 12 // batch
        torch.testing.assert_close(part.running_mean, sum(mean for mean, _ in seen) / len(seen))
        torch.testing.assert_close(part.running_var, sum(variance for _, variance in seen) / len(seen))
    first = frozen.bn1 if name == "resnet18" else frozen.features[1]
    maps = (module.conv1 if name == "resnet18" else module.features[0])(x)
    torch.testing.assert_close(first.running_mean, maps.mean((0, 2, 3)))
    if batch == 12:
        torch.testing.assert_close(first.running_var, maps.var((0, 2, 3)))


def test_without_batch_norm_it_is_a_plain_copy_in_evaluation_mode():
    module, x = build("vgg13", 1, 17, 3, 0.0625, "group").double(), images(3, 1, 17)
    frozen = frozen_statistics(module, x, 1)
    assert module.training and not frozen.training
    assert torch.equal(frozen(x), module(x))
    with torch.no_grad():
        next(frozen.parameters()).add_(1)
    assert not torch.equal(stored(frozen), stored(module))


# -- bad input -----------------------------------------------------------------------------------------------------

GIVEN = {"architecture": "resnet18", "channels": 3, "size": 32, "n_classes": 10}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"architecture": "vgg16"}, "architecture = 'vgg16': choose one of small_cnn"),
        ({"norm": "layer"}, "norm = 'layer': choose one of batch, group, none"),
        ({"norm": "layer", "architecture": "lenet"}, "norm = 'layer'"),
        ({"stem": "large"}, "stem = 'large': choose one of small, strided"),
        ({"channels": 0}, "channels = 0: give a whole number of at least 1"),
        ({"channels": 1.5}, "channels = 1.5"),
        ({"size": 0}, "size = 0: give a whole number of at least 1"),
        ({"n_classes": 1}, "n_classes = 1: give a whole number of at least 2"),
        ({"n_classes": True}, "n_classes = True"),
        ({"seed": -1}, "seed = -1"),
        ({"width_multiplier": 0.0}, "width_multiplier = 0.0: give a finite number above 0"),
        ({"width_multiplier": -1.0}, "width_multiplier = -1.0"),
        ({"width_multiplier": math.inf}, "width_multiplier = inf"),
        ({"width_multiplier": math.nan}, "width_multiplier = nan"),
        ({"width_multiplier": "wide"}, "width_multiplier = 'wide'"),
        ({"width_multiplier": True}, "width_multiplier = True"),
    ],
)
def test_bad_input_is_named(changed, words):
    with pytest.raises(InputError) as error:
        build(**GIVEN | changed)
    assert words in str(error.value)


LEAST = [("small_cnn", "small", 21), ("lenet", "small", 12), ("vgg13", "small", 17), ("vgg14", "small", 17)]
LEAST += [(name, stem, least) for name in ("resnet18", "resnet50") for stem, least in (("small", 5), ("strided", 9))]


@pytest.mark.parametrize(("name", "stem", "least"), LEAST)
def test_the_least_size_works_and_one_less_is_refused(name, stem, least):
    for norm in ("batch", "group"):
        module = build(name, 1, least, 2, 0.125, norm, stem)
        assert module(images(2, 1, least, torch.float32)).isfinite().all()
    with pytest.raises(InputError, match=f"size = {least - 1}: {name} needs images of at least {least} pixels"):
        build(name, 1, least - 1, 2, 0.125, stem=stem)


@pytest.mark.parametrize(
    ("name", "narrowest"), [("small_cnn", 8), ("lenet", 6), ("vgg14", 64), ("resnet18", 64), ("resnet50", 64)]
)
def test_the_least_multiplier_works_and_a_smaller_one_names_it(name, narrowest):
    with pytest.raises(InputError, match=f"a layer of {narrowest} channels") as error:
        build(name, 1, 28, 10, 1e-3)
    least = float(str(error.value).rsplit(" ", 1)[1])
    module = build(name, 1, 28, 10, least)
    assert module(images(3, 1, 28, torch.float32)).shape == (3, 10)
    assert min(part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)) == 1
    with pytest.raises(InputError, match="the smallest multiplier that works"):
        build(name, 1, 28, 10, least * (1 - 1e-9))


def test_batches_that_cannot_tell_the_statistics_are_named():
    module, x = build("resnet18", 1, 8, 3, 0.125), images(6, 1, 8, torch.float32)
    plain, divisor = build("resnet18", 1, 8, 3, 0.125, "none"), "all batches .* give a divisor of n = 6"
    for norm, batch in (("batch", 2), ("group", 1), ("none", 1)):
        check_batch(norm, batch)
    for call, given, words in (
        (check_batch, ("batch", 1), "batch = 1: batch normalisation needs 2 images or more"),
        (check_batch, ("group", 0), "batch = 0: give a whole number of at least 1"),
        (check_batch, ("layer", 2), "norm = 'layer'"),
        (frozen_statistics, (module, x, 1), "batch = 1: batch normalisation"),
        (frozen_statistics, (module, x, 4), f"batch = 4: {divisor}"),
        (frozen_statistics, (module, x, 12), f"batch = 12: {divisor}"),
        (frozen_statistics, (plain, x, 0), "batch = 0"),
        (frozen_statistics, (module, x[0], 2), r"x.shape = \(1, 8, 8\)"),
        (frozen_statistics, (module, x[:0], 2), r"x.shape = \(0, 1, 8, 8\)"),
    ):
        with pytest.raises(InputError, match=words):
            call(*given)

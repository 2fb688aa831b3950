"""`minires eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minires.cli import options

if TYPE_CHECKING:
    from minires.cli.sets import Source
    from minires.training import Evaluation, TrainedModel

FOREIGN = "For weights from elsewhere"


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"expected numbers with commas between them, such as 0.49,0.48,0.45; got {text!r}"
        ) from None


def evaluate(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_FILE", exists=True, help="A run's folder, or a file of weights."
        ),
    ],
    data: options.Data = None,
    data_dir: options.DataDir = None,
    size: options.Size = None,
    limit: options.Limit = None,
    download: options.Download = False,
    split: Annotated[
        str, typer.Option(metavar="test|train", help="The set to use.")
    ] = "test",
    batch_size: Annotated[int, typer.Option(metavar="N", min=1)] = 64,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=options.check_model,
            help="The model that the file belongs to.",
            rich_help_panel=FOREIGN,
        ),
    ] = None,
    shortcut: Annotated[
        str | None,
        typer.Option(
            metavar="A|B|C", callback=options.check_shortcut, rich_help_panel=FOREIGN
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            callback=_numbers,
            help="Subtracted from the images, scaled to 0..1, per channel.",
            rich_help_panel=FOREIGN,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B", callback=_numbers, help="Divided by.", rich_help_panel=FOREIGN
        ),
    ] = None,
    device: options.Device = None,
    precision: options.Precision = None,
    threads: options.Threads = None,
    kernels: options.Kernels = None,
) -> None:
    """Measure a trained model, class by class.

    The data, the model and the normalisation are known from the run; a file of weights from
    elsewhere (safetensors or PyTorch) needs them.

    Example: `minires eval runs/2025-01-31-digits-resnet20`

    Example: `minires eval resnet20.th --model resnet20 --data cifar10 --data-dir data
    --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225`
    """
    from minires.cli.sets import use_threads
    from minires.training import evaluate as measure
    from minires.training.precision import check_precision

    if split not in ("test", "train"):
        raise typer.BadParameter(f"--split is test or train, got {split!r}")
    source = _source(weights, data, data_dir, size, limit)
    dataset = source.load(split, download)
    use_threads(threads, dataset)
    if model is not None:
        trained = _foreign(weights, model, shortcut, dataset, mean, std)
    elif shortcut or mean or std:
        raise typer.BadParameter("--shortcut, --mean and --std go with --model")
    else:
        trained = _own(weights, dataset)
    device, precision = device or "cpu", precision or "fp32"
    check_precision(precision, device)
    trained.model.to(device)
    result = measure(
        trained.model,
        dataset,
        trained.normalization.transform(),
        batch_size=batch_size,
        device=device,
        precision=precision,
    )
    _show(trained, dataset, result)


def _source(
    weights: Path, data: str | None, data_dir: Path | None, size: int | None, limit: int | None
) -> Source:
    """The set that the options name, or else the run's own."""
    from minires.cli.sets import Source
    from minires.files import read_metadata
    from minires.training import RunFolder

    known: dict[str, Any] = {}
    if data is None:
        if weights.is_dir():
            known = RunFolder.open(weights).config()["source"] or {}
            data = known.get("data")
        elif weights.suffix == ".safetensors":
            data = read_metadata(weights).get("data")
        if data is None:
            raise typer.BadParameter(f"{weights} does not say which data it is for: give --data")
    if data_dir is None and known.get("data_dir") is not None:
        data_dir = Path(known["data_dir"])
    if data == "image_folder":
        return Source(data, str(data_dir), size or known.get("size"), limit)
    return Source.from_options(data, data_dir, size, limit)


def _own(weights: Path, dataset: Any) -> TrainedModel:
    """A model that minires trained."""
    from minires.training import load_model

    trained = load_model(weights)
    if trained.classes != dataset.classes:
        raise ValueError(
            f"{weights} tells {len(trained.classes)} classes apart ({_some(trained.classes)}); "
            f"{dataset.name} has {len(dataset.classes)} ({_some(dataset.classes)})"
        )
    return trained


def _foreign(
    weights: Path,
    name: str,
    shortcut: str | None,
    dataset: Any,
    mean: Any,
    std: Any,
) -> TrainedModel:
    """A model of ours with weights from elsewhere."""
    import numpy as np

    from minires import models
    from minires.files import load_file
    from minires.nn import init
    from minires.training import Normalization, TrainedModel

    channels = dataset.images.shape[1]
    if mean is None or std is None:
        raise typer.BadParameter(
            "weights from elsewhere do not say how their images were normalised: give --mean and "
            "--std (0,0,0 and 1,1,1 for none)"
        )
    if len(mean) != channels or len(std) != channels:
        raise typer.BadParameter(f"--mean and --std take {channels} numbers for {dataset.name}")
    chosen: dict[str, Any] = {"num_classes": len(dataset.classes), "in_channels": channels}
    if shortcut is not None:
        chosen["shortcut"] = shortcut
    with init.skip_init():
        model = models.create(name, **chosen)
    state = load_file(weights)
    # Some repositories call the classifier "linear".
    renamed = {"linear.weight": "fc.weight", "linear.bias": "fc.bias"}
    state = {renamed.get(key, key): array for key, array in state.items()}
    # Files from PyTorch before 0.4.1 have no such counters, and evaluation needs none.
    for key, tensor in model.state_dict().items():
        if key.endswith(".num_batches_tracked"):
            state.setdefault(key, tensor.numpy())
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    if missing or unknown:
        raise ValueError(
            f"{weights} does not hold the weights of {name}: {len(missing)} tensors are missing "
            f"({_some(missing)}), {len(unknown)} do not belong to it ({_some(unknown)})"
        )
    model.load_state_dict(state)
    return TrainedModel(
        model=model.eval(),
        classes=dataset.classes,
        normalization=Normalization(np.array(mean, np.float32), np.array(std, np.float32)),
        name=name,
        data=dataset.name,
        image_shape=dataset.images.shape[1:],
        options=chosen,
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:4], "..."] if len(names) > 4 else names) or "none"


def _show(trained: TrainedModel, dataset: Any, result: Evaluation) -> None:
    from minires.cli.console import duration, facts, output, table
    from minires.models import count_parameters

    console = output()
    rows = table("class", ">images", ">accuracy", "most often taken for")
    for label, name in enumerate(result.classes):
        count = int(result.class_counts[label])
        wrong = result.mistaken_for(label)
        rows.add_row(
            name,
            f"{count:,}",
            f"{100 * result.class_accuracy[label]:.2f} %" if count else "-",
            f"{result.classes[wrong[0]]} ({wrong[1]})" if wrong else "",
        )
    console.print(rows)
    summary = facts()
    kind = trained.name or type(trained.model).__name__
    summary.add_row("model", f"{kind}, {count_parameters(trained.model):,} parameters")
    summary.add_row("data", f"{dataset.name} {dataset.split}, {result.images:,} images")
    summary.add_row("loss", f"{result.loss:.4f}")
    wrong_count = result.images - int(result.confusion.trace())
    summary.add_row(
        "accuracy",
        f"[bold green]{100 * result.accuracy:.2f} %[/] (error {100 - 100 * result.accuracy:.2f} %, "
        f"{wrong_count:,} wrong)",
    )
    summary.add_row("time", f"{duration(result.seconds)}, {result.images_per_second:,.0f} images/s")
    console.print(summary)

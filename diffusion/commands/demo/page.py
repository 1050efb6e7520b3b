"""The page: controls by gradio, which write a command line; what it draws as HTML of ours (`view`)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ... import samplers
from ...data import pictures
from ...data.class_names import names_of, text_of
from ...data.files.raw_images import OPACITY
from ...denoisers.condition import LABEL
from ...errors import UserError, choose, library
from ...models import TrainedModel
from ..sample.arguments import parse_sample_arguments
from . import view
from .drawing import MOST, Drawn, Models, Picture, difference, draw, encode_image, png_of, with_settings
from .images import bits, channels_in_words, kept, kept_mask, kept_sample, seen, to_paint

ANY = ("any class", "")  # as shown, and its value, which is no class's name
Number = int | float | None  # a slider's, which JSON writes either way; None where its field is empty
TASKS = {"inpaint": "Fill in", "edit": "Vary", "encode": "Encode", "bits": "Bits/dim"}
_SAMPLERS = [name for name in samplers.names() if name != "adaptive-sde"]  # minutes on a CPU


def gradio() -> Any:
    """The library, with its calls to others' servers switched off."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    return library("gradio", "demo", "demo: the page is made by")


class Page:
    """The page of some models.

    Args:
        models: The models by name.
        names: Those to choose from, the first one shown at first.
        images: The folder in which images that are dropped on the page are kept.
    """

    def __init__(self, models: Models, names: Sequence[str], images: Path):
        self.models, self.names, self.images = models, list(names), images
        self.gr = gradio()
        self._c: dict[str, Any] = {}

    def blocks(self) -> Any:
        """The page as gradio's Blocks."""
        gr, first = self.gr, self.models[self.names[0]]
        with gr.Blocks(title="diffusion", analytics_enabled=False) as page:
            gr.HTML(
                '<header class="top"><h1>diffusion</h1><p>Draw, compare, edit, measure: on this machine.</p></header>'
            )
            with gr.Row(equal_height=False, elem_id="body"):
                with gr.Column(scale=0, min_width=300, elem_id="controls"):
                    self._controls(first)
                with gr.Column(scale=1, min_width=320, elem_id="stage"), gr.Tabs():
                    with gr.Tab("Draw", id="draw"):
                        self._c["drawn"] = gr.HTML(view.empty("Drawing ..."))
                    with gr.Tab("Compare", id="compare"):
                        self._compare_tab(first)
                    with gr.Tab("Image", id="image"):
                        self._image_tab(first)
            self._connect(page)
        return page

    def _controls(self, model: TrainedModel) -> None:
        gr, add = self.gr, self._c
        settings = model.sampling_settings({})
        add["model"] = gr.Dropdown(self.names, value=self.names[0], label="Model")
        add["about"] = gr.HTML(self._about(model))
        shown = self._shown(model)
        add["sampler"] = gr.Dropdown(
            _SAMPLERS, value=settings.get("sampler", "abm"), label="Sampler", visible=shown["sampler"]
        )
        add["steps"] = gr.Slider(
            1, 100, value=settings.get("steps") or 20, step=1, label="Steps", visible=shown["sampler"]
        )
        has_eta, eta = self._eta_of(settings.get("sampler"), settings.get("eta"))
        add["eta"] = gr.Slider(0, 2, value=eta, step=0.1, label="eta: fresh noise", visible=has_eta)
        with gr.Row(elem_classes="seed"):
            add["seed"] = gr.Textbox("0", label="Seed", max_lines=1, scale=1, min_width=80)
            add["shuffle"] = gr.Button("Shuffle", scale=0, min_width=80, size="sm")
        add["n"] = gr.Slider(1, MOST, value=16, step=1, label="Samples")
        add["label"] = gr.Dropdown([ANY, *self._classes(model)], value=ANY[1], label="Class", visible=shown["label"])
        add["guidance"] = gr.Slider(0, 6, value=1, step=0.25, label="Guidance (1 is off)", visible=shown["label"])
        add["draw"] = gr.Button("Draw", variant="primary")
        add["line"] = gr.HTML(view.line())

    def _compare_tab(self, model: TrainedModel) -> None:
        gr, add = self.gr, self._c
        gr.HTML('<p class="hint">The sampler on the left against another, from the same noise.</p>')
        with gr.Row():
            add["sampler_b"] = gr.Dropdown(_SAMPLERS, value="ddim", label="Other sampler")
            add["steps_b"] = gr.Slider(1, 100, value=20, step=1, label="Its steps")
            add["compare"] = gr.Button("Compare", variant="primary", scale=0, min_width=120)
        add["compared"] = gr.HTML(view.empty("Press Compare."))

    def _image_tab(self, model: TrainedModel) -> None:
        gr, add = self.gr, self._c
        with gr.Row(equal_height=False):
            with gr.Column(min_width=220):
                add["upload"] = gr.Image(
                    type="filepath", image_mode=None, sources=["upload", "clipboard"], height=180, buttons=[],
                    label="Drop an image",
                )  # fmt: skip
                add["take"] = gr.Button("Take the first drawn sample", size="sm")
            with gr.Column(min_width=220):
                add["painter"] = gr.HTML(view.empty("The image as the model sees it."))
                add["mask"] = gr.Textbox("", elem_id="mask", visible="hidden")
            with gr.Column(min_width=220):
                choices = [(label, name) for name, label in TASKS.items()]
                add["task"] = gr.Radio(choices, value="inpaint", label="What to do with it")
                add["strength"] = gr.Slider(0.05, 0.95, value=0.5, step=0.05, label="Strength", visible=False)
                add["run"] = gr.Button("Run", variant="primary")
        add["edited"] = gr.HTML(
            elem_id="edited",
            value=view.empty("Drop an image, or take a drawn sample; for Fill in, paint over a part of it."),
        )
        add["image"] = gr.State("")

    def _connect(self, page: Any) -> None:
        gr, c = self.gr, self._c
        requested = [c[name] for name in ("model", "sampler", "steps", "eta", "seed", "n", "label", "guidance")]
        shares: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        first = gr.State(None)  # the last drawn samples

        def on(event: Callable[..., Any], act: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> Any:
            """Tie an event to an action; a refusal becomes a line, and everything else stays as it is."""

            def guarded(*values: Any) -> Any:
                try:
                    made = act(*values)
                except (UserError, OSError) as error:
                    return (view.line(str(error), is_error=True), *[gr.skip()] * len(outputs))
                return (view.line(), *(made if isinstance(made, tuple) else (made,)))

            return event(guarded, inputs, [c["line"], *outputs], **shares)

        def drawn(*values: Any) -> Any:
            found = draw(self.models, self._command(*values))
            return view.result(found, f"{len(found.samples)} samples"), found.samples

        shuffled = on(c["shuffle"].click, lambda: str(secrets.randbelow(10**6)), [], [c["seed"]])
        sliders = [c[name].release for name in ("steps", "n", "guidance", "eta")]
        for event in (page.load, c["draw"].click, c["seed"].submit, shuffled.then, c["label"].input, *sliders):
            on(event, drawn, requested, [c["drawn"], first])
        changed = [c[name] for name in ("about", "sampler", "steps", "label", "guidance", "eta", "painter", "image")]
        other = on(c["model"].input, self._changed, [c["model"]], changed)
        on(other.then, drawn, requested, [c["drawn"], first])
        other = on(c["sampler"].input, self._eta, [c["sampler"]], [c["eta"]])
        on(other.then, drawn, requested, [c["drawn"], first])
        on(c["compare"].click, self._compared, [*requested, c["sampler_b"], c["steps_b"]], [c["compared"]])
        ready = [c["image"], c["painter"], c["mask"]]
        on(c["upload"].upload, self._dropped, [c["model"], c["upload"]], ready)
        on(c["take"].click, self._taken, [c["model"], first], ready)
        on(c["task"].input, lambda task: gr.update(visible=task == "edit"), [c["task"]], [c["strength"]])
        on(c["run"].click, self._worked, [*requested, c["task"], c["image"], c["mask"], c["strength"]], [c["edited"]])

    # What the page says of a model, and which controls it has.

    def _about(self, model: TrainedModel) -> str:
        size = sum(weight.numel() for weight in model.module.parameters())
        shape = " x ".join(map(str, model.facts.shape))
        levels = "real numbers" if model.facts.levels is None else f"{model.facts.levels} grey levels"
        text = f"{model.config.family} of {model.facts.name}: {shape}, {levels}; {size:,} parameters"
        if len(model.facts.shape) == 3 and (channels := channels_in_words(model.facts.shape[0])):
            text += f". Pictures show its {channels}"
        return f'<p class="hint">{view.escape(text)}</p>'

    def _classes(self, model: TrainedModel) -> list[str]:
        count = model.facts.num_classes if LABEL in model.config.denoiser.parts else 0
        return names_of(model.facts.provenance, count)

    def _shown(self, model: TrainedModel) -> dict[str, bool]:
        return {"sampler": "sampler" in model.sampling_options, "label": bool(self._classes(model))}

    def _changed(self, name: str) -> Any:
        """Another model: its facts, its own sampler and steps, its classes."""
        gr, model = self.gr, self.models[name]
        shown, settings = self._shown(model), model.sampling_settings({})
        sampler = settings.get("sampler", "abm")
        return (
            self._about(model),
            gr.update(value=sampler, visible=shown["sampler"]),
            gr.update(value=settings.get("steps") or 20, visible=shown["sampler"]),
            gr.update(choices=[ANY, *self._classes(model)], value=ANY[1], visible=shown["label"]),
            gr.update(value=1, visible=shown["label"]),
            self._eta(settings.get("sampler"), settings.get("eta")),
            view.empty("The image as the model sees it."),
            "",
        )

    def _eta_of(self, sampler: str | None, own: Any = None) -> tuple[bool, int | float]:
        """Whether a sampler has a stochasticity, and its value: the run's own, or else its default."""
        if sampler is None or "eta" not in samplers.takes(sampler):
            return False, 0.0
        value = samplers.build(sampler).settings["eta"] if own is None else own
        return True, value if isinstance(value, int | float) else 1.0

    def _eta(self, sampler: str | None, own: Any = None) -> Any:
        """The slider of the stochasticity for a sampler."""
        visible, value = self._eta_of(sampler, own)
        return self.gr.update(visible=visible, value=value)

    # What it draws.

    def _command(
        self, name: str, sampler: str, steps: Number, eta: Number, seed: str, n: Number, label: str, guidance: Number
    ) -> list[str]:
        """The command line that the controls say."""
        model = self.models[name]
        takes = model.sampling_options
        has_eta = "sampler" in takes and "eta" in samplers.takes(sampler)
        names = self._classes(model)
        label_given = None
        if names and label != ANY[1]:
            label_given = text_of(names.index(choose("label", str(label), names)), names)
        return with_settings(
            self.models.arguments(name),
            sampler=sampler if "sampler" in takes else None,
            steps=_typed(steps) if "steps" in takes else None,
            eta=_typed(eta) if has_eta else None,
            seed=seed.strip(),
            n=_typed(n),
            label=label_given,
            guidance=_typed(guidance) if label_given is not None and guidance != 1 else None,
        )

    def _compared(self, *values: Any) -> str:
        *requested, sampler_b, steps_b = values
        name, sampler, _, eta, *rest = requested
        both = all("eta" in samplers.takes(one) for one in (sampler, sampler_b))
        other = self._command(name, sampler_b, steps_b, eta if both else self._eta_of(sampler_b)[1], *rest)
        a, b, gap, rms = difference(self.models, (self._command(*requested), other))
        sides = "".join(
            f'<div class="one"><h3>{view.escape(title)}</h3>{view.figure(found.picture, title, "wide")}'
            f"{self._costs(found)}{view.code(found.command)}</div>"
            for title, found in ((f"{sampler}, {requested[2]} steps", a), (f"{sampler_b}, {steps_b} steps", b))
        )
        caption = f"The difference: RMS {rms:.2f} of 255; white is its largest value"
        return f'<div class="two">{sides}</div>{view.figure(gap, caption)}'

    def _costs(self, found: Drawn) -> str:
        return view.facts({"Evaluations a sample": f"{found.nfe:.0f}", "Seconds": f"{found.seconds:.2f}"})

    def _dropped(self, name: str, path: str) -> Any:
        model = self.models[name]
        seen(model, path)  # refused before it is kept
        return self._ready(model, kept(path, self.images))

    def _taken(self, name: str, samples: Any) -> Any:
        model = self.models[name]
        if samples is None:
            raise UserError("image: nothing has been drawn yet; press Draw first")
        if tuple(samples.shape[1:]) != tuple(model.facts.shape):
            raise UserError("image: the last samples are of another model; press Draw first")
        return self._ready(model, kept_sample(samples[0], self.images))

    def _ready(self, model: TrainedModel, path: str) -> Any:
        x = seen(model, path)
        small = Picture(pictures.encode(to_paint(x, OPACITY in model.facts.provenance)), "image.png")
        shown = view.painter(small, *model.facts.shape[-2:])
        if channels := channels_in_words(model.facts.shape[0]):
            shown += view.figure(Picture(pictures.encode(pictures.grid(x)), "channels.png"), channels)
        return path, shown, ""

    def _worked(self, *values: Any) -> str:
        *requested, task, path, marks, strength = values
        model = self.models[requested[0]]
        if not path:
            raise UserError("image: there is none yet; drop one, or take a drawn sample")
        if task == "bits":
            return self._bits(model, path, requested)
        if task == "encode":
            return self._encoded(requested, path)
        argv = self._command(*requested)
        if task == "edit":
            found = draw(self.models, with_settings(argv, edit=path, strength=f"{strength:g}"))
            return view.result(found, "variations of the image")
        mask = kept_mask(marks, model.facts.shape, self.images)
        plain = self._without(argv, "--sampler", "--eta")  # the default of inpainting corrects errors by fresh noise
        found = draw(self.models, with_settings(plain, inpaint=path, mask=mask))
        return view.result(found, "the marked part filled in")

    def _without(self, argv: Sequence[str], *flags: str) -> list[str]:
        pairs = zip(argv[::2], argv[1::2], strict=True)
        return [word for pair in pairs if pair[0] not in flags for word in pair]

    def _encoded(self, requested: Sequence[Any], path: str) -> str:
        argv = self._without(self._command(*requested), "--n", "--eta", "--guidance")
        if samplers.build(requested[1]).is_stochastic:  # then `ode`: noise has no way back
            argv = self._without(argv, "--sampler", "--steps")
        command, found = encode_image(self.models, with_settings(argv, encode=path))
        about = {"command": command, "record": asdict(found.record)}
        shown = {"the image": found.x, "its noise": found.noise.float().cpu() / 3.0, "drawn back from it": found.back}
        figures = "".join(
            view.figure(Picture(png_of(pictures.grid(x), about), f"{name.replace(' ', '-')}.png"), name)
            for name, x in shown.items()
        )
        costs = {"Evaluations there": f"{found.nfe[0]:.0f}", "and back": f"{found.nfe[1]:.0f}"}
        values = view.facts({**costs, "Seconds": f"{found.seconds:.2f}"})
        hint = f'<p class="hint">Back again: {view.escape(found.error)}.</p>'
        return f'<div class="three">{figures}</div>{values}{hint}{view.code(command, "The noise as a file")}'

    def _bits(self, model: TrainedModel, path: str, requested: Sequence[Any]) -> str:
        found = bits(model, path, parse_sample_arguments(self._command(*requested)).seed)
        parts = {f"of them {name}": f"{value:.3f}" for name, value in found.parts.items()}
        costs = {"Evaluations": f"{found.estimate.nfe:.0f}", "Seconds": f"{found.estimate.seconds:.2f}"}
        hint = "An upper bound of the bits (the ELBO), and at which noise levels they are spent."
        return (
            view.facts({"Bits/dim": f"{found.bits_per_dim:.3f}", **parts, **costs})
            + f'<p class="hint">{hint}</p>{view.figure(found.chart, "Bits/dim by log-SNR", "chart")}'
        )


def _typed(value: Number) -> str:
    """A number as one types it; what reads the command line refuses an empty field."""
    return "" if value is None else f"{value:g}"

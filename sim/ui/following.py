"""Follows a visitor: from the values of controls to events that change parts of the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from reports.formatting import plural
from sim.errors import InputError, LoraplanError
from sim.results.point import Point
from sim.ui import fragments
from sim.ui.controls import Control, curve_values, moved_or_slots
from sim.ui.fragments import estimate
from sim.ui.library import ChosenDesign, Library, Opened, problems_of
from sim.ui.simulating.broker import Broker
from sim.ui.simulating.tasks import SHORT, PointAnswer, TooLong
from sim.ui.simulating.workers import TooSlow

Event = dict[str, Any]
"""What the page is sent: ``stage``, and perhaps ``parts`` (HTML by id), ``status`` (a line), ``problems``."""
MOST_PINS = 3
_DRAWN_EVERY_S, _DRAWN_FROM = 0.7, 4
"""While its points come, a curve is drawn again after so many seconds, with at least so many points."""
_NO_CONTROL = "No control of this scenario gives a curve."


class PageRequest(BaseModel):
    """What a page asks: a scenario and the values of its controls.

    :ivar text: of a file that the visitor chose; None: ``name`` is one of the library's.
    :ivar moved: key of the control that was moved last.
    :ivar pins: values of pinned designs.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(max_length=1000)
    text: str | None = Field(default=None, max_length=1_000_000)
    values: dict[str, str] = Field(default_factory=dict, max_length=100)
    moved: str | None = Field(default=None, max_length=200)
    pins: list[dict[str, str]] = Field(default_factory=list, max_length=MOST_PINS)


def opened_event(library: Library, asked: PageRequest) -> Event:
    """Return what changes on the page when a scenario is opened."""
    try:
        opened = library.open(asked.name, asked.text)
    except InputError as error:
        return {"stage": "refused", "problems": problems_of(error, (), None)}
    parts = {"heading": fragments.heading(opened), "controls": fragments.control_panel(opened)}
    return {"stage": "opened", "name": opened.name, "parts": parts}


async def follow(broker: Broker, library: Library, asked: PageRequest) -> AsyncIterator[Event]:
    """Yield events for a design: the formulas' estimate, a short run, the curve, ever longer runs, the final numbers.

    Closing the iterator stops whatever is under way for it alone.
    """
    controls: tuple[Control, ...] = ()
    try:
        opened = await asyncio.to_thread(library.open, asked.name, asked.text, again=False)
        controls = opened.controls
        design = await asyncio.to_thread(opened.design, asked.values)
        rough = await asyncio.to_thread(estimate, design)
    except InputError as error:
        yield {"stage": "refused", "problems": problems_of(error, controls, asked.moved)}
        return
    yield {
        "stage": "estimate",
        "status": "Estimated by formulas; a short run is under way.",
        "parts": {"estimate": fragments.estimate_box(rough), "commands": fragments.commands(design, rough)},
    }
    try:
        await asyncio.to_thread(getattr, design, "key")  # reads the files that the scenario names
        known = broker.known(design)
        judged = known or await broker.short(design)
    except TooLong as error:
        judged = None
        yield {"stage": "estimate", "status": f"No short run: {error}. The full run is under way."}
    except LoraplanError as error:
        yield _refusal(error, controls, asked.moved)
        return
    if judged is not None and not judged.final:
        yield _judged_event(judged, design, "short", "From a short run. The full run is under way.")
    async for event in _merged([partial(_full, broker, asked, design), partial(_curve, broker, asked, design)]):
        yield event


Say = Callable[[Event], None]


async def _merged(parts: list[Callable[[Say], Awaitable[None]]]) -> AsyncIterator[Event]:
    """Yield what several coroutines say, as it comes; they are cancelled when the iterator is closed."""
    events: asyncio.Queue[Event | None] = asyncio.Queue()

    async def one(part: Callable[[Say], Awaitable[None]]) -> None:
        try:
            await part(events.put_nowait)
        finally:
            events.put_nowait(None)

    tasks = [asyncio.ensure_future(one(part)) for part in parts]
    left = len(tasks)
    try:
        while left:
            event = await events.get()
            if event is None:
                left -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _full(broker: Broker, asked: PageRequest, design: ChosenDesign, say: Say) -> None:
    pins = await _pinned(broker, asked, design, say)
    try:
        async for found in broker.evaluate(design):
            if not isinstance(found, PointAnswer):
                say({"stage": "progress", "done": found.done, "of": found.of, "status": _steps(found.done, found.of)})
            elif found.final:
                count = plural(found.replications, "replication")
                status = f"Final: the numbers of loraplan run ({count}, with headroom)."
                say(_judged_event(found, design, "final", status))
                await _compare(broker, pins, design, found, say)
            else:
                say(_judged_event(found, design, "tighter", _steps(found.done, found.of)))
    except TooSlow:
        say({"stage": "stopped", "status": "The full run takes too long for a page. Run the command below."})
    except TooLong as error:
        say({"stage": "stopped", "status": f"Short runs only: {error}. Run the command below."})
    except LoraplanError as error:
        say(_refusal(error, design.opened.controls, asked.moved))


async def _pinned(
    broker: Broker, asked: PageRequest, design: ChosenDesign, say: Say
) -> list[tuple[ChosenDesign, PointAnswer | None]]:
    """Return the pinned designs with what is known of them, and show them."""
    found: list[tuple[ChosenDesign, PointAnswer | None]] = []
    for values in asked.pins:
        try:
            pin = await asyncio.to_thread(design.opened.design, values)
            known = await asyncio.to_thread(broker.known, pin)
            found.append((pin, known or await broker.short(pin)))
        except TooLong:
            found.append((pin, None))
        except LoraplanError:
            continue  # a pin of a scenario that has changed meanwhile, or that can't be simulated in time
    judged = broker.known(design)
    if judged is not None:
        await _compare(broker, found, design, judged, say)
    elif not found:
        say({"stage": "compared", "parts": {"pins": ""}})
    return found


async def _compare(
    broker: Broker,
    pins: list[tuple[ChosenDesign, PointAnswer | None]],
    design: ChosenDesign,
    judged: PointAnswer,
    say: Say,
) -> None:
    rows = []
    for pin, _ in pins:
        known = broker.known(pin)
        with suppress(LoraplanError):  # the pin's own, such as too many requests: its comparison stays as it was
            if known is not None and known.final and not judged.final:
                known = await broker.short(pin)  # like with like
            elif judged.final and not (known is not None and known.final):
                async for found in broker.evaluate(pin):
                    known = found if isinstance(found, PointAnswer) else known
        rows.append(await asyncio.to_thread(fragments.compare, (pin, known), (design, judged)))
    say({"stage": "compared", "parts": {"pins": fragments.part("compared", rows)}})


async def _curve(broker: Broker, asked: PageRequest, design: ChosenDesign, say: Say) -> None:
    """Show p99 along the control that was moved last, point by point."""
    control = curve_control(design.opened, asked.moved)
    if control is None:
        say({"stage": "curve", "parts": {"curve": fragments.part("plain", _NO_CONTROL)}})
        return
    here = control.check(asked.values.get(control.key, control.value))
    points: dict[str, Point] = {}
    why = f"{control.words} has no other value here that can be simulated"

    async def draw() -> None:
        """Show the curve through the points so far, or why there is none."""
        chart = None
        if len(points) > 1:
            order = [name for name, _ in control.choices] or sorted(points, key=float)
            ordered = tuple(points[value] for value in order if value in points)
            chart = await broker.curve(ordered, control.typed(here), design.loaded.scenario.slo.terms())
        shown = fragments.part("plain", f"No curve: {why}.")
        if chart is not None:
            shown = fragments.part("curve", chart, SHORT, design.loaded.scenario.fleet.autoscale is not None)
        say({"stage": "curve", "parts": {"curve": shown}})

    drawn = time.monotonic()
    for value in curve_values(control, here):
        try:
            other = design
            if value != here:
                other = await asyncio.to_thread(design.opened.design, {**asked.values, control.key: value})
            await asyncio.to_thread(getattr, other, "key")
            judged = await broker.short(other, curve=True)
        except LoraplanError as error:  # this value can't be simulated; the curve leaves it out
            why = str(error) if isinstance(error, TooLong) else why
            continue
        points[value] = replace(judged.point, set={control.key: control.typed(value)})
        if len(points) >= _DRAWN_FROM and time.monotonic() > drawn + _DRAWN_EVERY_S:
            await draw()
            drawn = time.monotonic()
    await draw()
    say({"stage": "curve", "whole": True})


def curve_control(opened: Opened, moved: str | None) -> Control | None:
    """Return the control that a curve is along: the one that was moved last, unless it is a target."""
    useful = [control for control in opened.controls if not control.disabled and not control.key.startswith("slo.")]
    return moved_or_slots(useful, moved) or next(iter(useful), None)


def _judged_event(judged: PointAnswer, design: ChosenDesign, stage: str, status: str) -> Event:
    event: Event = {"stage": stage, "status": status, "parts": fragments.answer_parts(judged, design.loaded)}
    largest = fragments.at_its_largest(judged, design.loaded)
    event["said"] = fragments.largest_words(design.loaded) if largest else judged.answer.headline
    if judged.of:
        event |= {"done": judged.done, "of": judged.of}
    return event


def _refusal(error: LoraplanError, controls: tuple[Control, ...], moved: str | None) -> Event:
    if isinstance(error, InputError):
        return {"stage": "refused", "problems": problems_of(error, controls, moved)}
    return {"stage": "refused", "problems": [{"control": "", "text": str(error)}]}


def _steps(done: int, of: int) -> str:
    return f"{done} of {of} steps of the full run are done."

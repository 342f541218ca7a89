"""`t5x_lite train`: raw text to a trained, evaluated, sampled model. Read it top to bottom."""

import argparse
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from t5x_lite import config, exit_status, run_vocabulary
from t5x_lite.data.loader import BatchLoader, prefetch
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.errors import UserError
from t5x_lite.evaluation.predictions import TextEvaluation
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.flops import train_flops
from t5x_lite.parallel import distributed
from t5x_lite.parallel.compile_cache import use_compile_cache
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.parallel.rules import Rules, use_mesh
from t5x_lite.planning.check import predicted_and_measured
from t5x_lite.programs import describe, folder, remains, run_log
from t5x_lite.programs import dry_run as dry
from t5x_lite.programs.early_stopping import EarlyStopping
from t5x_lite.programs.embed import StsEvaluation
from t5x_lite.programs.exports import CheckpointConfig, ExportingCheckpoints
from t5x_lite.programs.held_out import HeldOut
from t5x_lite.programs.interrupt import Interrupt, Stopped
from t5x_lite.programs.lock import Lock
from t5x_lite.programs.periods import check_periods, period_notes
from t5x_lite.programs.recorder import Recorder, say
from t5x_lite.programs.weights import check_exports, check_start, has_checkpoint
from t5x_lite.ranges import AboveZero, Count, Positive
from t5x_lite.training import garbage
from t5x_lite.training.background_compile import BackgroundCompile
from t5x_lite.training.build import build, fresh_state, started_from
from t5x_lite.training.goodput import Goodput
from t5x_lite.training.guards import SpikeGuard
from t5x_lite.training.head_losses import HeadLoss
from t5x_lite.training.optimizers import Optimizer
from t5x_lite.training.pair_losses import ContrastiveLoss
from t5x_lite.training.recovery import restore_newest, save_surely
from t5x_lite.training.services import Service
from t5x_lite.training.setup import set_up
from t5x_lite.training.step import Loss
from t5x_lite.training.trainable import Trainable
from t5x_lite.training.watchdog import WatchdogConfig
from t5x_lite.training.watches import Watches


def main(args: argparse.Namespace) -> int:
    use_compile_cache()
    distributed.initialize(args.coordinator_address, args.process_count, args.process_index)
    with distributed.failing_together(), run_log.recorded():
        config.require("train")
        with Interrupt(owns_process=True) as interrupt:
            config.call("train", dry_run=args.dry_run, interrupt=interrupt)
    return exit_status.SAVED if interrupt.stopped else exit_status.FINISHED


def train(
    *,
    model_dir: str,
    model: TransformerConfig,
    task: Task | Mixture,
    lengths: Mapping[str, Positive],
    batch_size: Positive,
    total_steps: Positive,
    optimizer: Optimizer,
    loss: Loss | ContrastiveLoss | HeadLoss | None = None,
    mesh: MeshConfig | None = None,
    rules: Rules | None = None,
    pack: bool = True,
    seed: Count = 0,
    num_microbatches: Positive = 1,
    checkpoint: CheckpointConfig | None = None,
    initial_checkpoint: str | None = None,
    initial_params: str | None = None,
    accept_other_vocabulary: bool = False,
    trainable: str | None = None,
    frozen: str | None = None,
    layer_decay: AboveZero = 1.0,
    log_period: Positive = 100,
    eval_period: Positive = 1000,
    eval_batch_count: Positive | None = 20,
    text: TextEvaluation | None = None,
    sts: StsEvaluation | None = None,
    early_stopping: EarlyStopping | None = None,
    num_samples: Count = 3,
    sample_period: Count = 0,
    trackers: Sequence[Service] = (),
    watches: Watches | None = None,
    max_bad_steps: Positive = 10,
    spike_guard: SpikeGuard | None = None,
    watchdog: WatchdogConfig | None = None,
    gc_period: Positive = 1000,
    num_workers: Count = 0,
    dry_run: bool = False,
    interrupt: Interrupt | None = None,
) -> dict[str, Any]:
    """Trains until ``total_steps``; continues what it finds in ``model_dir``.

    ``total_steps`` is the length of the learning-rate schedule too, unless that has its own.

    The state is taken from, in this order: the newest sound checkpoint in ``model_dir``;
    ``initial_checkpoint``; random initialisation. All periods are in absolute steps.

    Args:
      model_dir: the run's folder, made if it isn't there.
      lengths: tokens of each of the task's features, such as {"inputs": 512, "targets": 114}.
      batch_size: rows of the global batch, over all devices and hosts.
      optimizer: AdamW(...), Adafactor(...), ... of t5x_lite.training.optimizers.
      rules: which mesh axes split which axes of arrays, see parallel/rules.py.
      pack: several examples in one row.
      num_microbatches: gradients are accumulated over so many parts of the batch.
      initial_checkpoint: whose parameters to start from: another run's folder or checkpoint, a
        folder of Hugging Face, or a checkpoint of T5X.
      initial_params: regular expression: only parameters with a match are taken from it.
      accept_other_vocabulary: start from weights that were trained with another vocabulary, too.
      trainable, frozen, layer_decay: see training/trainable.py.
      eval_batch_count: batches of held-out data at each evaluation; None: all there are.
      text, sts: how texts are predicted for tasks' metrics; similarity of sentence vectors.
      early_stopping: which metric ends the run when it gets no better.
      num_samples: predictions shown after the last step, and every ``sample_period`` steps (0: no).
      trackers, watches: see training/services.py and training/watches.py.
      max_bad_steps: so many steps in a row whose loss or gradient isn't finite end the run.
      spike_guard: skips updates whose loss or gradient norm is far above the latest ones.
      watchdog: when a step counts as hanging, and whether that ends the process.
      gc_period: steps between collections of Python's garbage.
      num_workers: processes that make batches; 0: this one.
      dry_run: build everything on abstract shapes, print it, check data, weights and folder, stop.
      interrupt: what asks to save and stop; None: signals, while it trains.

    Returns:
      The summary that is printed at the end (see `describe.summary`); {"step": ...} of a run that
      was saved on request.

    Raises:
      UserError: anything about the configuration, the data or the folder that can't work.
      FloatingPointError: after ``max_bad_steps``.
      SaveError: the last state could not be saved.
    """
    goodput = Goodput()
    checkpoint = checkpoint or CheckpointConfig()
    if early_stopping is not None and early_stopping.model_dir is None:
        early_stopping = dataclasses.replace(early_stopping, model_dir=model_dir)
    if not 1 <= total_steps < 2**31:  # a device counts steps in 32 bits
        raise UserError(f"total_steps = {total_steps}: it must be at least 1, and below 2**31.")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed = {seed}: it must be 0 or more, and below 2**63.")
    periods = dict(log_period=log_period, eval_period=eval_period, sample_period=sample_period)
    check_periods(**periods, gc_period=gc_period)

    # ------------------------------------------------------------------- model, data, devices
    setup = set_up(model, task, lengths, batch_size, mesh, rules=rules, pack=pack)
    training = build(
        setup, optimizer, loss=loss, num_microbatches=num_microbatches, seed=seed,
        guard=spike_guard, watches=watches, trainable=Trainable(trainable, frozen, layer_decay),
        total_steps=total_steps,
    )  # fmt: skip
    abstract, axes = training.abstract, setup.model.logical_axes()

    flops = train_flops(model, setup.feature_lengths, batch_size)
    numbers = describe.derived_numbers(
        setup, abstract, total_steps, flops, num_microbatches, training.trained
    )
    numbers["learning rate"] = describe.schedule_text(training.schedule)
    notes = [*getattr(training.schedule, "notes", ())]
    notes += period_notes(checkpoint, total_steps, **periods)
    check_exports(setup.reading, checkpoint.export_every)
    if initial_checkpoint is not None and not has_checkpoint(model_dir):
        check_start(initial_checkpoint, setup.model, task, initial_params, accept_other_vocabulary)
    if dry_run:
        with use_mesh(setup.mesh, setup.rules):
            training.step.lower(abstract, setup.abstract_batch())
        describe.print_dry_run(setup, abstract, axes, numbers)

    # ------------------------------------------------------------------- data
    loader = BatchLoader(
        task, lengths=dict(lengths), batch_size=batch_size, seed=seed, rows=setup.rows,
        architecture=model.architecture, pack=pack, num_workers=num_workers,
    )  # fmt: skip
    held_out = HeldOut(
        setup, eval_batch_count, loss, text=text, sts=sts, early_stopping=early_stopping
    )
    if absent := held_out.absent():
        needs = {"early_stopping": early_stopping and early_stopping.metric,
                 "CheckpointConfig.keep_best": checkpoint.keep_best}  # fmt: skip
        for name, metric in needs.items():
            if metric is not None:
                raise UserError(f"{name} looks at {metric!r} of held-out data, but {absent}.")
        notes.append(f"this run is trained without any evaluation: {absent}")

    # ------------------------------------------------------------------- the run's folder
    identity = folder.identity(setup, seed=seed, pack=pack, data=loader.fingerprint)
    if dry_run:
        dry.check(
            setup, training, loader, held_out, model_dir=model_dir, identity=identity,
            checkpoint=checkpoint, total_steps=total_steps,
            initial_checkpoint=initial_checkpoint, initial_params=initial_params,
        )  # fmt: skip
        for note in notes:
            say(f"warning: {note}")
        return numbers
    with contextlib.ExitStack() as stack:
        if distributed.is_main_process():
            folder.claim(model_dir, identity)
            run_vocabulary.carry(model_dir, task.vocabulary)
        lock = stack.enter_context(Lock(model_dir, active=distributed.is_main_process()))
        if distributed.is_main_process():
            run_log.write_to(model_dir)

        # --------------------------------------------------------------- state
        checkpoints = stack.enter_context(ExportingCheckpoints(model_dir, checkpoint, model))
        with goodput.spend("restore"):
            restored = restore_newest(checkpoints, abstract.to_dict())
        earlier = restored.description if restored else {}
        step = restored.step if restored else 0
        last = step >= total_steps or held_out.exhausted(step)
        if last and remains.complete(model_dir, step, not absent) and not checkpoints.exports_due():
            more = f"\n  {describe.continue_command(model_dir, step)}"
            more = more if step >= total_steps else " change EarlyStopping."
            say(f"{model_dir} is finished: step {step:,} of {total_steps:,}. More:{more}")
            return describe.print_summary(model_dir, describe.summary(model_dir, step))
        if distributed.is_main_process():
            folder.write_description(model_dir, describe.parameter_table(abstract.params, axes))
        describe.print_start(numbers)
        notes += describe.schedule_change(earlier.get("schedule"), training.schedule, step)
        notes += [f"nothing here uses {binding}" for binding in config.unused_bindings()]
        for note in notes:
            say(f"warning: {note}")
        if told := remains.candidates(checkpoint, eval_period):
            say(told)
        if not last:
            with goodput.spend("compile"), use_mesh(setup.mesh, setup.rules):
                compiling = BackgroundCompile(training.step, abstract, setup.abstract_batch())
        if restored:
            state = type(abstract)(**restored.state)
            loader.restore(restored.position[setup.rows])
            say(f"continuing from step {step:,} of {model_dir}")
        else:
            state = fresh_state(training, setup.model, seed, spike_guard)
            if initial_checkpoint is not None:
                from t5x_lite.interop.pretrained import restore_params

                found = restore_params(
                    initial_checkpoint, abstract.params, initial_params, model=model, start=True,
                    vocabulary=task.vocabulary,
                )  # fmt: skip
                state = started_from(state, found, training, setup.model, seed)
                say(f"starting from {initial_checkpoint}: {len(jax.tree.leaves(found))} parameters")
            elif model.adapters:
                say("warning: adapters on random weights; set train.initial_checkpoint")
        del restored  # the step donates the state's buffers

        recorder = stack.enter_context(Recorder(
            model_dir, setup, goodput, step=step, total_steps=total_steps, earlier=earlier,
            flops=flops, max_bad_steps=max_bad_steps, watchdog=watchdog,
            facts={"seed": seed, "last_checkpoint": step, "config": config.config_text()},
            numbers=numbers, services=trackers,
        ))  # fmt: skip

        def evaluate_now(first: bool = False) -> dict[str, float]:
            if absent:
                return {}
            with recorder.away("evaluation"):
                metrics = held_out.evaluate(state.params)
                metrics |= held_out.unigram() if first else {}
                interrupt.look()
                with interrupt.undisturbed():
                    recorder.trackers.log(step, {f"eval/{k}": v for k, v in metrics.items()})
            return metrics

        def sample_now() -> list[dict[str, str]]:
            if absent:
                return []
            with recorder.away("evaluation"), jax.transfer_guard("allow"):
                found = held_out.samples(state.params, num_samples)
                interrupt.look()
                with interrupt.undisturbed():
                    recorder.log_samples(step, found)
            return found

        def save(metrics: dict[str, float] | None, ended: bool) -> None:
            lock.check(now=True)
            # What is logged of these steps is on the disk before a process can continue from here.
            recorder.flush()
            with recorder.away("checkpoint"), jax.transfer_guard("allow"):
                checkpoints.save(
                    step,
                    state.to_dict(),
                    data_position=distributed.gather_rows(position, setup.rows, batch_size),
                    description=identity
                    | recorder.state(ended)
                    | {"config": config.config_text(), "reading": setup.reading.record()}
                    | {"schedule": numbers["learning rate"]},
                    metrics=metrics or None,
                )

        def save_and_leave() -> None:  # while an evaluation or a compiler is still at work
            if step > first:
                save_surely(lambda: save(None, True), checkpoints)
            checkpoints.wait()
            lock.release()

        # --------------------------------------------------------------- the loop
        stack.enter_context(use_mesh(setup.mesh, setup.rules))
        interrupt = interrupt or stack.enter_context(Interrupt())
        held_out.look = interrupt.look
        batches = stack.enter_context(contextlib.closing(prefetch(loader)))
        stack.enter_context(garbage.collector_off())
        stack.enter_context(jax.transfer_guard("disallow"))
        stop, first = False, step
        interrupt.saves(save_and_leave)
        try:
            if step == 0:
                evaluate_now(first=True)
            elif absent:
                pass
            elif (last or step % eval_period == 0) and not remains.evaluated(model_dir, step):
                checkpoints.add_metrics(step, evaluate_now())
            last = last or held_out.exhausted(step)
        except Stopped:
            stop = True
        with recorder.training():
            if not (last or stop):
                training = training._replace(step=compiling.result())
            while not (last or stop):
                with recorder.waiting_for_data():
                    batch = next(batches)
                run_step = recorder.program(training, step + 1)
                with interrupt.undisturbed():
                    state, metrics = run_step(state, setup.place(batch.features))
                    step, position = step + 1, batch.position
                    recorder.made(step, metrics, batch.features)
                garbage.collect(step, gc_period)
                stop = interrupt.requested()
                last = step == total_steps
                if step % log_period == 0 or last or stop:
                    lock.check()
                    with interrupt.undisturbed():
                        recorder.log(step, metrics, loader.shares(position))
                eval_metrics = None
                try:
                    if last or (step % eval_period == 0 and not stop):
                        eval_metrics, last = evaluate_now(), last or held_out.exhausted(step)
                    if sample_period and step % sample_period == 0 and num_samples and not last:
                        sample_now()
                except Stopped:
                    stop = True
                with interrupt.undisturbed():
                    if last or stop:
                        save_surely(lambda: save(eval_metrics, True), checkpoints)  # noqa: B023
                    elif checkpoints.should_save(step):
                        save(eval_metrics, False)
        interrupt.saves(None)
        if stop:
            done = f"saved step {step:,}" if step > first else f"nothing is new since step {step:,}"
            say(f"{interrupt.signal}: {done}; the same command continues.")
            return {"step": step}

        # --------------------------------------------------------------- what it has learnt
        try:
            samples = sample_now() if num_samples else []
            checked = predicted_and_measured(
                setup, abstract, num_microbatches=num_microbatches, compiled=training.step
            )
            summary = recorder.sum_up(step, samples, checked)
            checkpoints.finish_exports(interrupt.look)
        except Stopped:
            say(f"{interrupt.signal}: saved step {step:,}; the same command makes up the rest.")
            return {"step": step}
        return summary

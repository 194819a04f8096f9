"""How are the replicas of a new or changed backend started, before it is committed?

They are held: in no table, and left alone by reconciliation, until `release`. After a failure none of them is left. Only
where new ones have no room beside the old are they shown early, one at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from headgate.controller.fleet import Fleet, Replica
from headgate.controller.tasks import Changes
from headgate.core import reconcile
from headgate.core import replica_life as life
from headgate.core.desired import Backend
from headgate.engines.base import Engine
from headgate.errors import InsufficientResourcesError, ReplicaStartError


class _Update:
    """A rolling update under way."""

    def __init__(self, old: Backend) -> None:
        self.old = old
        self.old_wanted = old.config.num_replicas  # so many old replicas are still to run
        self.new: list[Replica] = []  # all ready
        self.one_by_one = False


class Rollouts:
    """All that are under way. `reconcile` is called when there should be fewer old replicas, or more again."""

    def __init__(self, engine: Engine, fleet: Fleet, changes: Changes, *, reconcile: Callable[[], None]) -> None:
        self._engine = engine
        self._fleet = fleet
        self._changes = changes
        self._reconcile = reconcile
        self._updates: dict[str, _Update] = {}

    @property
    def updating(self) -> Collection[str]:
        """The backends whose code is being replaced."""
        return self._updates.keys()

    def wanted(self, backend: Backend) -> int:
        """How many replicas of this backend should run now: fewer than configured while others take their place."""
        update = self._updates.get(backend.tag)
        if update is None:
            return backend.config.num_replicas
        if update.one_by_one:  # what dies of the old isn't started again: its room is for a new one
            return min(update.old_wanted, len(self._live(update.old)))
        return update.old_wanted

    def coming(self) -> dict[str, int]:
        """Backends whose replicas are replaced one at a time: another one will come, so requests may wait for it."""
        return {tag: 1 for tag, update in self._updates.items() if update.one_by_one}

    def resume(self, old: Backend, new: Backend, have: list[Replica]) -> None:
        """An update that an earlier controller began goes on from here, before anything is reconciled: `replace` will follow.

        Where old ones are missing, or not all new ones were begun, they replace each other one at a time. Then those that are
        ready, of `have`, serve: all but the last have done so already.
        """
        update = self._updates[new.tag] = _Update(old)
        if len(self._live(old)) < old.config.num_replicas or len(have) < new.config.num_replicas:
            update.new = [replica for replica in have if replica.state == life.READY]
            self._show(update)

    def release(self, replicas: list[Replica]) -> None:
        """They belong to what is asked for now."""
        for replica in replicas:
            replica.held, replica.shown = False, True
            self._updates.pop(replica.tag, None)

    async def start(self, backend: Backend, count: int, have: list[Replica]) -> list[Replica]:
        """Start `count` replicas in parallel beside those it has; return all, once all are ready.

        Raises `InsufficientResourcesError` or `ReplicaStartError`; after that, or a cancellation, none of them is left.
        """
        replicas = [*have, *(self._fleet.make(backend, held=True) for _ in range(count))]
        starts = [asyncio.ensure_future(self._fleet.start(replica)) for replica in replicas]
        try:
            await self._changes.until(
                lambda: all(replica.state == life.READY for replica in replicas) or not all(replica.live for replica in replicas)
            )
            for replica, start in zip(replicas, starts, strict=True):
                if replica.given_up:
                    raise InsufficientResourcesError(replica.given_up)
                if not replica.live:
                    await start  # which says why, unless it was ready before
            self._check_alive(replicas)
        except BaseException as error:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await self._kill(replicas, "its backend did not start")
            if isinstance(error, InsufficientResourcesError):
                raise InsufficientResourcesError(f"backend {backend.tag!r}: there is no room: {error.message}") from None
            if isinstance(error, ReplicaStartError):
                message = f"backend {backend.tag!r} could not be started: {error.message}"
                raise ReplicaStartError(message, remote_traceback=error.remote_traceback) from None
            raise
        return replicas

    async def start_all(self, wanted: list[tuple[Backend, int, list[Replica]]]) -> list[Replica]:
        """Start replicas of several backends in parallel, as `start` does for each; return all, once all are ready and well.

        Raises what `start` raises; after that, or a cancellation, none of them is left.
        """
        starts = [asyncio.ensure_future(self.start(backend, count, have)) for backend, count, have in wanted]
        try:
            replicas = [replica for started in await asyncio.gather(*starts) for replica in started]
            await self._check(replicas)
            self._check_alive(replicas)
        except BaseException:
            for start in starts:
                start.cancel()
            for started in await asyncio.gather(*starts, return_exceptions=True):
                if not isinstance(started, BaseException):
                    await self._kill(started, "its deployment failed")
            raise
        return replicas

    async def replace(self, old: Backend, new: Backend, have: list[Replica], *, allow_gap: bool) -> list[Replica]:
        """Start the replicas of new code, beside the old ones or one at a time; return them, all ready.

        `have` are those that an earlier controller has started, after `resume`. Errors as for `start`; after one the old code
        serves on.
        """
        update = self._updates.setdefault(new.tag, _Update(old))
        try:
            await self._join(update, await self.start(new, 0, [replica for replica in have if not replica.shown]))
            while await self._take_step(update, old, new, allow_gap=allow_gap):
                pass
        except BaseException:
            del self._updates[new.tag]
            await self._kill([replica for replica in update.new if not replica.shown], "its update failed")
            for replica in update.new:
                replica.held = False  # those that have served are of no wanted generation now: they are drained
            self._reconcile()
            raise
        return update.new

    async def _take_step(self, update: _Update, old: Backend, new: Backend, *, allow_gap: bool) -> bool:
        """One step of the plan in `core/reconcile.py`; False after the last one."""
        self._check_alive(update.new)
        waiting = self._engine.waiting()
        live, wanted = sorted(self._live(old), key=lambda replica: replica.id in waiting), new.config.num_replicas

        def fits(count: int, without_one: bool) -> str | None:
            return self._engine.fits(new.options, count, [live[0].id] if without_one and live else None)

        waits = self._engine.may_fit(new.options, wanted, [replica.id for replica in (*live, *update.new)]) is None
        step = reconcile.next_step(wanted=wanted, old=len(live), new=len(update.new), fits=fits, waits=waits, allow_gap=allow_gap)
        if isinstance(step, reconcile.Commit):
            return False
        if isinstance(step, reconcile.Start):
            update.one_by_one = update.one_by_one or not step.beside
            await self._join(update, await self.start(new, step.count, []))
            if not step.beside:
                update.old_wanted = min(update.old_wanted, wanted - len(update.new))
                self._reconcile()
        elif self._is_making_room(update):  # maybe since before this controller: look again when it has
            await self._changes.until(lambda: not self._is_making_room(update))
        elif isinstance(step, reconcile.StopOld):
            update.one_by_one = True
            update.old_wanted = len(live) - 1
            self._reconcile()
        else:
            hint = "; with allow_gap=True it is stopped first, and requests wait meanwhile" if step.gap else ""
            raise InsufficientResourcesError(f"backend {new.tag!r}: the new version does not fit beside the old one: {step.why}{hint}")
        return True

    def _is_making_room(self, update: _Update) -> bool:
        """Whether a replica of the backend is on its way out, or should be."""
        leaving = any(replica.dismissed for replica in self._fleet.of(update.old.tag))
        return leaving or len(self._live(update.old)) > update.old_wanted

    def _live(self, backend: Backend) -> list[Replica]:
        return [replica for replica in self._fleet.of(backend.tag, backend.generation) if replica.live]

    async def _join(self, update: _Update, fresh: list[Replica]) -> None:
        """New replicas are ready, and belong to the update once they are well."""
        update.new += fresh
        await self._check(fresh)
        if update.one_by_one:
            self._show(update)

    def _show(self, update: _Update) -> None:
        """Let new replicas serve beside the old ones."""
        update.one_by_one = True
        for replica in update.new:
            replica.shown = True

    def _check_alive(self, replicas: list[Replica]) -> None:
        for replica in replicas:
            if replica.state != life.READY:
                raise ReplicaStartError(f"replica {replica.id} of backend {replica.tag!r} ended soon after its start: {replica.fault}")

    async def _check(self, replicas: list[Replica]) -> None:
        """New replicas must give a sign of life before anything is shifted to them."""
        for replica, fault in zip(replicas, await asyncio.gather(*map(self._fleet.check, replicas)), strict=True):
            if fault:
                raise ReplicaStartError(f"replica {replica.id} of the new version of backend {replica.tag!r} is not well: {fault}")

    async def _kill(self, replicas: list[Replica], why: str) -> None:
        await asyncio.gather(*(self._fleet.kill(replica, why, dismissed=True) for replica in replicas))

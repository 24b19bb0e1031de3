"""The hand-over as steppable coroutines over plain memory: every interleaving, with a kill at every point.

One client, one place of a worker with its lives, one server. A step is one access to shared memory or one call of the
kernel. Words and order of accesses are those of `handover.py`, `client.py` and `worker.py` in `rt_lrhc/cluster`;
the kernel is modelled by its promises: a bell keeps its ring, and a pidfd is readable after a death, not before.

Explored depth first over all schedules of the three, up to a number of requests and of kills. Checked in every state:
an accepted plan is whole, is for the present request, and is from a life that was asked; the last whole answer survives
whatever kills the next writer. Checked at every end: no request waits for ever (no lost wake-up).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

REQUESTS = 5


@dataclass
class Memory:
    """The words of client, worker and server, the slots, the bells, and what the kernel knows."""

    request: int = 0
    asked_life: int = 0
    question: list[int] = field(default_factory=lambda: [0, 0])
    done: int = 0
    answer_life: list[int] = field(default_factory=lambda: [0, 0])
    # A plan is two words, so that it can be torn: both are the question that it answers.
    plan: list[list[int]] = field(default_factory=lambda: [[0, 0], [0, 0]])
    go: bool = False
    bell: bool = False
    life: int = 1
    dead: bool = False
    announced: int = 1


@dataclass
class Worker:
    """The program counter and the registers of one life."""

    life: int
    at: str = "wait"
    request: int = 0
    question: int = 0


@dataclass
class Client:
    """The program counter and the registers of the client."""

    at: str = "trigger"
    issued: int = 0
    request: int = 0
    life: int = 1
    alive: bool = True
    outstanding: bool = False
    accepted: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class World:
    """Everything, at one moment."""

    memory: Memory = field(default_factory=Memory)
    worker: Worker = field(default_factory=lambda: Worker(1))
    client: Client = field(default_factory=Client)
    kills: int = 1
    keeps_good_slot: bool = True

    def key(self) -> str:
        return repr((self.memory, self.worker, self.client, self.kills))


def worker_step(world: World) -> bool:
    """One step of the worker; False where it sleeps."""
    memory, worker = world.memory, world.worker
    if memory.dead:
        return False
    if worker.at == "wait":
        if not memory.go:
            return False
        memory.go, worker.at = False, "look"
    elif worker.at == "look":
        worker.request = memory.request
        worker.at = "wait" if worker.request == memory.done else "life"
    elif worker.at == "life":
        worker.at = "read" if memory.asked_life == worker.life else "wait"
    elif worker.at == "read":
        worker.question = memory.question[worker.request & 1]
        worker.at = "write 0"
    elif worker.at in ("write 0", "write 1"):
        memory.plan[worker.request & 1][int(worker.at[-1])] = worker.question
        worker.at = "write 1" if worker.at == "write 0" else "sign"
    elif worker.at == "sign":
        memory.answer_life[worker.request & 1] = worker.life
        worker.at = "done"
    elif worker.at == "done":
        memory.done = worker.request
        worker.at = "ring"
    else:
        memory.bell, worker.at = True, "wait"
    return True


def kill_step(world: World) -> bool:
    """SIGKILL, at whatever point the worker is."""
    if world.kills == 0 or world.memory.dead:
        return False
    world.kills -= 1
    world.memory.dead = True
    # What a later life starts from: the slot of the last whole answer.
    first, second = world.memory.plan[world.memory.done & 1]
    assert first == second, "the last whole answer has been damaged"
    return True


def server_step(world: World) -> bool:
    """Start the next life of a dead worker, and announce it; its bells are those of the place."""
    memory = world.memory
    if not memory.dead:
        return False
    memory.life += 1
    memory.dead = False
    world.worker = Worker(memory.life)
    memory.announced = memory.life
    return True


def client_step(world: World) -> bool:
    """One step of the client: trigger, then collect without waiting, again and again."""
    memory, client = world.memory, world.client
    if client.at == "trigger":
        if client.issued == REQUESTS:
            if not client.outstanding:
                return False
            client.at = "drain"
        elif client.alive and not client.outstanding:
            client.request += 1
            client.issued += 1
            client.at = "question"
        else:
            client.at = "drain"
    elif client.at == "question":
        memory.question[client.request & 1] = client.issued
        client.at = "life"
    elif client.at == "life":
        memory.asked_life = client.life
        client.at = "request"
    elif client.at == "request":
        memory.request = client.request
        client.outstanding = True
        client.at = "go"
    elif client.at == "go":
        memory.go, client.at = True, "drain"
    elif client.at == "drain":
        if memory.bell:
            memory.bell, client.at = False, "accept"
        elif memory.announced != client.life or memory.dead:
            client.at = "news"
        elif client.outstanding:
            return False  # asleep: a bell or a death wakes it
        else:
            client.at = "trigger"
    elif client.at == "accept":
        if client.outstanding and memory.done == client.request:
            client.outstanding = False
            slot = client.request & 1
            if memory.answer_life[slot] == client.life:
                first, second = memory.plan[slot]
                assert first == second, "a torn plan was accepted"
                assert first == client.issued, "a stale plan was accepted"
                client.accepted.append((client.issued, first))
        client.at = "drain"
    elif client.at == "news":
        # The death first, with the last look at the answer; then the next life, if there is one.
        if memory.bell:
            memory.bell, client.at = False, "accept"
            return True
        client.outstanding = client.alive = False
        if memory.announced != client.life:
            client.life, client.alive = memory.announced, not memory.dead
            if world.keeps_good_slot:
                client.request += (client.request ^ memory.done) & 1
            client.at = "trigger"
        else:
            return False  # asleep until the server announces
    return True


STEPS = (client_step, worker_step, server_step, kill_step)


def explore(world: World) -> Iterator[World]:
    """Yield every end that some interleaving leads to: nobody can take a step but the killer."""
    seen: set[str] = set()
    stack = [world]
    while stack:
        here = stack.pop()
        moved = False
        for step in STEPS:
            there = copy.deepcopy(here)
            if not step(there):
                continue
            moved = moved or step is not kill_step
            key = there.key()
            if key not in seen:
                seen.add(key)
                stack.append(there)
        if not moved:
            yield here
    assert len(seen) > 50, "nothing was explored"


@pytest.mark.parametrize("kills", [0, 1, 2])
def test_no_interleaving_loses_a_wake_up_or_accepts_a_stale_or_torn_plan(kills: int) -> None:
    ends = list(explore(World(kills=kills)))
    assert ends
    for end in ends:
        assert not end.client.outstanding, "a request waits for ever"
        lost = end.client.issued - len(end.client.accepted)
        assert lost <= kills - end.kills, "a request is lost only with the life that was asked"


def test_the_model_finds_the_damage_if_lives_write_over_the_last_whole_answer() -> None:
    """Without the step to the other slot, two kills in a row damage what a later life starts from."""
    with pytest.raises(AssertionError, match="the last whole answer has been damaged"):
        list(explore(World(kills=2, keeps_good_slot=False)))

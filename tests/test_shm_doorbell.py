"""Doorbells: never block, never lose a ring, count many as one."""

import threading

from rt_lrhc.shm.doorbell import Doorbell


def test_rings_before_a_look_count_as_one_and_none_is_lost() -> None:
    bell = Doorbell.create()
    assert not bell.drain() and not bell.wait(0.0)
    bell.ring()
    bell.ring()
    assert bell.wait(0.0) and bell.drain() and not bell.drain()
    bell.close()
    bell.close()


def test_a_ring_ends_a_wait() -> None:
    bell = Doorbell.create()
    thread = threading.Timer(0.01, bell.ring)
    thread.start()
    assert bell.wait(10.0) and bell.drain()
    thread.join(10.0)
    bell.close()

"""What the books of a machine give, refuse and say."""

from __future__ import annotations

import pytest

from headgate.config import ReplicaOptions
from headgate.core.resources import Books
from headgate.errors import InsufficientResourcesError


def test_ten_times_a_tenth_is_all_of_it() -> None:
    books = Books({"CPU": 1})
    for number in range(10):
        books.take(f"r{number}", ReplicaOptions(num_cpus=0.1))
    assert books.free()["CPU"] == 0
    with pytest.raises(InsufficientResourcesError):
        books.take("r10", ReplicaOptions(num_cpus=0.1))


def test_what_is_not_asked_for_is_not_counted() -> None:
    books = Books({"CPU": 0, "GPU": 0})
    assert books.take("a", ReplicaOptions()) == ()


def test_shares_of_a_gpu_fill_one_device_before_the_next() -> None:
    books = Books({"GPU": 2})
    gpus = [books.take(f"r{number}", ReplicaOptions(num_gpus=0.5)) for number in range(4)]
    assert gpus == [("0",), ("0",), ("1",), ("1",)]


def test_a_share_goes_where_it_leaves_the_least() -> None:
    books = Books({"GPU": 2})
    books.take("a", ReplicaOptions(num_gpus=0.3))
    books.take("b", ReplicaOptions(num_gpus=0.8))
    assert books.take("c", ReplicaOptions(num_gpus=0.2)) == ("1",)


def test_whole_gpus_are_devices_that_nobody_shares() -> None:
    books = Books({"GPU": 3}, ["4", "5", "7"])
    books.take("a", ReplicaOptions(num_gpus=0.1))
    assert books.take("b", ReplicaOptions(num_gpus=2)) == ("5", "7")
    with pytest.raises(InsufficientResourcesError):
        books.take("c", ReplicaOptions(num_gpus=1))
    books.give_back("b")
    assert books.take("c", ReplicaOptions(num_gpus=1)) == ("5",)


def test_shares_on_several_devices_do_not_add_up_to_a_whole_one() -> None:
    books = Books({"GPU": 2})
    for number in range(2):
        books.take(f"r{number}", ReplicaOptions(num_gpus=0.6))
    assert books.refusal(ReplicaOptions(num_gpus=0.8)) == "asked for 0.8 GPU; free 0.8 of 2 GPU (in shares of 0.4 and 0.4)"


def test_a_refusal_names_what_was_asked_and_what_is_free() -> None:
    books = Books({"CPU": 4, "tpu": 1})
    books.take("a", ReplicaOptions(num_cpus=3))
    options = ReplicaOptions(num_cpus=2, resources={"tpu": 2, "fpga": 1})
    with pytest.raises(InsufficientResourcesError) as caught:
        books.take("b", options)
    assert str(caught.value) == "asked for 2 CPU and 2 tpu and 1 fpga; free 1 of 4 CPU, 1 of 1 tpu, 0 of 0 fpga"
    assert books.free() == {"CPU": 1, "GPU": 0, "tpu": 1}


def test_a_refusal_for_want_of_any_gpu_says_what_to_do() -> None:
    refusal = Books({"CPU": 4}).refusal(ReplicaOptions(num_gpus=1))
    assert (
        refusal
        == "asked for 1 GPU; free 0 of 0 GPU (no GPU was found, or CUDA_VISIBLE_DEVICES hides all; without num_gpus it runs on CPUs)"
    )
    taken = Books({"GPU": 1})
    taken.take("a", ReplicaOptions(num_gpus=1))
    assert taken.refusal(ReplicaOptions(num_gpus=1)) == "asked for 1 GPU; free 0 of 1 GPU"


def test_a_refusal_of_several_says_that_the_amount_is_for_each() -> None:
    assert Books({"CPU": 4}).refusal(ReplicaOptions(num_cpus=2), 3) == "asked for 2 CPU for each of 3 replicas; free 4 of 4 CPU"


def test_a_rolling_change_may_count_on_what_the_old_ones_give_back() -> None:
    books = Books({"GPU": 1})
    books.take("old", ReplicaOptions(num_gpus=1))
    new = ReplicaOptions(num_gpus=1)
    assert books.refusal(new) is not None
    assert books.refusal(new, 1, ["old"]) is None
    assert books.refusal(new, 1, ["old", "old"]) is None
    assert books.refusal(new, 2, ["old", "old"]) is not None


def test_what_runs_already_is_booked_even_where_it_no_longer_fits() -> None:
    books = Books({"CPU": 1, "GPU": 1}, ["0"])
    books.adopt("a", ReplicaOptions(num_cpus=2, num_gpus=0.5), ["0"])
    books.adopt("gone", ReplicaOptions(num_gpus=1), ["9"])
    assert books.free() == {"CPU": -1, "GPU": 0.5}
    books.give_back("a")
    books.give_back("gone")
    assert books.free() == books.totals() == {"CPU": 1, "GPU": 1}


def test_an_amount_above_nothing_is_never_free_of_charge() -> None:
    books = Books({"CPU": 0})
    assert books.refusal(ReplicaOptions(num_cpus=1e-9)) is not None

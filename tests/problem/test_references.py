"""Functions over parts of a module, made again over copies."""

import functools
import types
from collections import namedtuple

from sklearn_implicitreg.problem.references import turned


class Part:
    """Stands for a module."""

    def call(self):
        return self


OLD, NEW, OTHER = Part(), Part(), Part()
OWN = {id(OLD): NEW}
Pair = namedtuple("Pair", ["first", "second"])


def turn(value):
    return turned(value, OWN, {})


def over(part):
    def function(*, extra=part):
        return part, extra

    return function


class TestTurned:
    def test_functions(self):
        again = turn(over(OLD))
        assert again() == (NEW, NEW)
        assert (again.__name__, again.__qualname__) == ("function", over(OLD).__qualname__)

    def test_what_leads_nowhere_is_shared(self):
        empty = {"a": [1, over(OTHER)], "b": (over(None), functools.partial(over, OTHER))}
        for value in (over(OTHER), empty, 3, None, OTHER, OTHER.call, print, Part):
            assert turn(value) is value

    def test_methods_and_partials(self):
        assert turn(OLD.call)() is NEW
        partial = functools.partial(over(OLD), extra=OLD)
        partial.note = [OLD]
        again = turn(partial)
        assert again() == (NEW, NEW)
        assert again.note == [NEW]
        assert partial.note == [OLD]
        method = types.MethodType(lambda self: (self, OLD), OLD)
        assert turn(method)() == (NEW, OLD)  # a global is no closure

    def test_containers_of_the_user_stay(self):
        inner = [OLD, OTHER]
        tree = {"list": inner, "pair": Pair(OLD, 1), "same": inner, "tuple": (OLD, (OLD,))}
        again = turn(tree)
        assert again["list"] == [NEW, OTHER]
        assert again["pair"] == Pair(NEW, 1)
        assert type(again["pair"]) is Pair
        assert again["same"] is again["list"]
        assert again["tuple"] == (NEW, (NEW,))
        assert tree["list"] is inner
        assert inner == [OLD, OTHER]

    def test_functions_that_call_each_other(self):
        part = OLD

        def even(n):
            return part if n == 0 else odd(n - 1)

        def odd(n):
            return None if n == 0 else even(n - 1)

        assert turn(even)(4) is NEW
        assert turn(odd)(3) is NEW
        assert turn({"e": even, "o": odd})["o"](1) is NEW
        assert even(4) is OLD

    def test_names_without_a_value_yet(self):
        part = OLD

        def function():
            return part, later

        again = turn(function)
        later = 1
        assert function() == (OLD, later)
        try:
            again()
        except NameError:
            return
        raise AssertionError("the cell is the user's")

    def test_containers_that_hold_themselves(self):
        loop = [OLD]
        loop.append(loop)
        again = turn(loop)
        assert again[0] is NEW
        assert again[1] is again

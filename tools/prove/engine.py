# SPDX-License-Identifier: GPL-2.0-only
"""Theorems, their proofs and the attacks on them.

A theorem is a function of a `Proof`. It names its inputs, states what is given, and makes claims; each claim is one
question to z3: is there an input for which it does not hold? "unsat" proves it, "sat" is a counterexample, and
"unknown" (the time ran out) is a failure as well.

The same function runs against broken models: then a claim must fail, or the theorem states less than it seems to.

Products of two unknowns are hard for a solver. A proof sees them as an unknown function with given facts, which are
theorems of their own (`theorems/products.py`). An attack sees true products, so that every counterexample is real.
"""

from dataclasses import dataclass, field

import z3

# Seconds for one question. The hardest takes a few on an idle machine.
QUESTION_TIMEOUT = 300


class Disproved(Exception):
    """A claim does not hold; the text is the counterexample."""


@dataclass
class Break:
    """A change that must make a theorem fail: another model, or other parameters of the theorem."""

    says: str
    model: type = None
    where: dict = field(default_factory=dict)  # Values of inputs, which spare the solver a search.
    parameters: dict = field(default_factory=dict)


@dataclass
class Theorem:
    """A statement about the arithmetic of rust/pvclock."""

    name: str
    function: object
    source: str  # file:function of rust/pvclock that it is about.
    inputs: str
    breaks: list

    @property
    def says(self):
        return " ".join(self.function.__doc__.split())


THEOREMS = []


def theorem(source, inputs, breaks):
    """Registers the function below as a theorem."""
    assert breaks, "a theorem needs attacks"

    def register(function):
        THEOREMS.append(Theorem(function.__name__, function, source, inputs, breaks))
        return function

    return register


def full_product(a, b):
    """The product of two bit vectors in as many bits as both have, so that nothing is lost."""
    return z3.ZeroExt(b.size(), a) * z3.ZeroExt(a.size(), b)


def unknown_product(a, b):
    """A function in place of `full_product`, of which a proof knows only the facts that it is given."""
    sorts = z3.BitVecSort(a.size()), z3.BitVecSort(b.size()), z3.BitVecSort(a.size() + b.size())
    return z3.Function(f"product{a.size()}x{b.size()}", *sorts)(a, b)


class Proof:
    """One run of a theorem against one model."""

    def __init__(self, model, attack=False, where=None):
        self.attack = attack
        self.where = where or {}
        self.mul = full_product if attack else unknown_product
        self.model = model(self.mul)
        self.inputs = {}
        self.always = []
        self.questions = 0

    def bits(self, name, width):
        """An input: any bit vector of `width` bits."""
        return self._input(name, z3.BitVec(name, width))

    def whole(self, name, low, high):
        """An input: any integer in low..=high."""
        value = self._input(name, z3.Int(name))
        self.given(low <= value, value <= high)
        return value

    def _input(self, name, value):
        self.inputs[name] = value
        if name in self.where:
            self.always.append(value == self.where[name])
        return value

    def given(self, *conditions):
        """Restricts all claims from here on."""
        self.always += conditions

    def claim(self, goal, given=(), facts=(), label=""):
        """Asks whether `goal` holds for all inputs; `facts` are instances of other theorems."""
        facts = [] if self.attack else list(facts)
        conditions = [*self.always, *given, *facts]
        self.questions += 1
        answer, model = ask([*conditions, z3.Not(goal)])
        if answer == z3.sat:
            raise Disproved(self.show(model, label))
        if self.attack:
            return
        if answer != z3.unsat:
            raise TimeoutError(f"{label}: z3 gave up after {QUESTION_TIMEOUT} s")
        # Everything is true of no input: some input must fulfil the conditions.
        if conditions and ask(conditions)[0] != z3.sat:
            raise Disproved(f"{label}: no input, or none that z3 finds, fulfils the conditions")

    def claim_no_overflow(self, **options):
        """Claims that no operation of the model would panic in Rust."""
        goals, self.model.obligations = self.model.obligations, []
        assert goals, "the model has no obligations"
        self.claim(z3.And(*goals), label="no overflow", **options)

    def show(self, model, label):
        values = [f"{name} = {show_value(model.eval(value, True))}" for name, value in self.inputs.items()]
        return ", ".join([label] * bool(label) + values)


def show_value(value):
    return hex(value.as_long()) if z3.is_bv_value(value) else str(value)


def ask(conditions):
    """Whether the conditions can be fulfilled, and how."""
    solver = z3.Solver()
    solver.set("timeout", QUESTION_TIMEOUT * 1000)
    solver.add(*conditions)
    answer = solver.check()
    return answer, solver.model() if answer == z3.sat else None


def prove(theorem, model):
    """Proves the theorem for the model of the source: (whether it holds, why)."""
    proof = Proof(model)
    try:
        theorem.function(proof)
    except (Disproved, TimeoutError) as error:
        return False, str(error)
    return True, f"{proof.questions} questions"


def refute(theorem, broken, model, verbose):
    """Looks for a counterexample, which the break must have: (whether there is one, which)."""
    proof = Proof(broken.model or model, attack=True, where=broken.where)
    try:
        theorem.function(proof, **broken.parameters)
    except Disproved as counterexample:
        return True, f"{broken.says}: disproved by {counterexample}" if verbose else broken.says
    return False, f"no counterexample found to: {broken.says}"

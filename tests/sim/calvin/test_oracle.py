"""When a task is done, on both sides of each threshold."""

import dataclasses
import math

import pytest

from pi0rag_jax.sim.calvin import oracle
from pi0rag_jax.sim.calvin.oracle import Block, Facts

LYING = Block((0.5, 0.0, 0.138), (1.0, 0.0, 0.0, 0.0), frozenset({"table"}), 0.0, held=False)
START = Facts({"red": LYING, "blue": dataclasses.replace(LYING, place=(0.5, 0.1, 0.138)),
               "pink": dataclasses.replace(LYING, place=(0.7, 0.1, 0.144), touches=frozenset({"plank"}))},
              {"drawer": 0.0, "slider": 0.18}, {"lightbulb": False, "led": True})
HELD = {"touches": frozenset({"robot"}), "held": True}


def changed(start=START, **blocks):
  return dataclasses.replace(start, blocks={name: dataclasses.replace(block, **blocks.get(name, {}))
                                            for name, block in start.blocks.items()})


def about(x, y, z, degrees):
  half = math.radians(degrees) / 2
  return math.cos(half), *(math.sin(half) * axis for axis in (x, y, z))


@pytest.mark.parametrize(("task", "degrees", "done"), [
  ("rotate_red_block_left", 61, True), ("rotate_red_block_left", 59, False), ("rotate_red_block_left", -61, False),
  ("rotate_red_block_right", -61, True), ("rotate_blue_block_left", 61, False)])
def test_a_turn(task, degrees, done):
  assert oracle.achieved(task, START, changed(red={"wxyz": about(0, 0, 1, degrees)})) is done


def test_a_turn_is_in_place_on_the_table_and_upright():
  turned = {"wxyz": about(0, 0, 1, 70)}
  for more, done in (({"place": (0.59, 0.0, 0.138)}, True), ({"place": (0.61, 0.0, 0.138)}, False),
                     ({"touches": frozenset({"robot"})}, False), ({"touches": frozenset({"robot", "table"})}, True)):
    assert oracle.achieved("rotate_red_block_left", START, changed(red={**turned, **more})) is done
  roll = oracle.turn_between(LYING, dataclasses.replace(LYING, wxyz=about(1, 0, 0, 40)))
  assert roll == pytest.approx((40, 0, 0), abs=1e-6)
  assert not oracle.achieved("rotate_red_block_left", START, changed(red={"wxyz": about(0.6, 0, 0.8, 80)}))


@pytest.mark.parametrize(("task", "y", "touches", "done"), [
  ("push_red_block_left", 0.101, {"table"}, True), ("push_red_block_left", 0.099, {"table"}, False),
  ("push_red_block_right", -0.101, {"table", "robot"}, True), ("push_red_block_right", 0.101, {"table"}, False),
  ("push_red_block_left", 0.2, {"robot"}, False)])
def test_a_push(task, y, touches, done):
  assert oracle.achieved(task, START, changed(red={"place": (0.5, y, 0.138), "touches": frozenset(touches)})) is done


def test_a_lift_is_from_its_surface_and_by_the_robot_alone():
  up = {"place": (0.5, 0.0, 0.189)}
  assert oracle.achieved("lift_red_block_table", START, changed(red={**up, **HELD}))
  beside = {**up, "touches": frozenset({"robot", "blue"})}
  assert not oracle.achieved("lift_red_block_table", START, changed(red=beside))
  assert not oracle.achieved("lift_red_block_table", START, changed(red={**HELD, "place": (0.5, 0.0, 0.187)}))
  assert not oracle.achieved("lift_red_block_drawer", START, changed(red={**up, **HELD}))
  assert oracle.achieved("lift_pink_block_slider", START, changed(pink={**HELD, "place": (0.7, 0.1, 0.175)}))


def test_doors_and_lights():
  for joint, before, after, task, done in (
      ("drawer", 0.0, 0.121, "open_drawer", True), ("drawer", 0.0, 0.119, "open_drawer", False),
      ("drawer", 0.14, 0.019, "close_drawer", True), ("drawer", 0.12, 0.019, "close_drawer", False),
      ("slider", 0.0, 0.151, "move_slider_left", True), ("slider", 0.0, 0.149, "move_slider_left", False),
      ("slider", 0.18, 0.029, "move_slider_right", True), ("slider", 0.18, 0.029, "move_slider_left", False)):
    start, end = (dataclasses.replace(START, joints={**START.joints, joint: place}) for place in (before, after))
    assert oracle.achieved(task, start, end) is done, (task, before, after)
  lit = dataclasses.replace(START, lights={"lightbulb": True, "led": True})
  assert oracle.achieved("turn_on_lightbulb", START, lit) and oracle.achieved("turn_off_lightbulb", lit, START)
  assert not oracle.achieved("turn_on_led", START, lit)  # it was on


def test_things_are_put_down_and_let_go():
  held, laid = changed(red=HELD), {"touches": frozenset({"drawer"})}
  assert oracle.achieved("place_in_drawer", held, changed(red=laid))
  assert not oracle.achieved("place_in_slider", held, changed(red=laid))
  assert not oracle.achieved("place_in_drawer", held, changed(red={"touches": frozenset({"drawer", "robot"})}))
  assert not oracle.achieved("place_in_drawer", START, changed(red=laid))  # it lay on the table
  assert oracle.achieved("push_into_drawer", START, changed(red=laid))
  assert not oracle.achieved("push_into_drawer", held, changed(red=laid))
  stacked = changed(red={"touches": frozenset({"blue"})})
  assert oracle.achieved("stack_block", held, stacked)
  assert not oracle.achieved("stack_block", held, changed(red={"touches": frozenset({"blue", "robot"})}))
  assert not oracle.achieved("stack_block", held, changed(red={"touches": frozenset({"blue"}), "speed": 1.1}))
  assert oracle.achieved("unstack_block", stacked, START)
  assert not oracle.achieved("unstack_block", stacked, changed(red=HELD))  # CALVIN would have it so


def test_facts_can_be_kept():
  assert Facts.read(START.plain()) == START

from collections.abc import Callable

import torch

from amuse_lab.bench.counting import OperationCounter


def test_products_and_their_work() -> None:
    a, b = torch.randn(2, 3), torch.randn(3, 5)
    stack, other = torch.randn(4, 2, 3), torch.randn(4, 3, 5)
    with OperationCounter() as counter:
        torch.mm(a, b)
        torch.addmm(torch.ones(2, 5), a, b)
        torch.bmm(stack, other)
        torch.baddbmm(torch.ones(4, 2, 5), stack, other)
        torch.randn(4, 2, 5).baddbmm_(stack, other)
    assert counter.products == 1 + 1 + 4 + 4 + 4
    assert counter.flops == 2 * (2 * 3 * 5) * counter.products
    assert counter.by_name["aten.baddbmm"] == counter.by_name["aten.baddbmm_"] == 1


def test_five_steps_of_the_iteration_are_fifteen_products() -> None:
    from amuse_lab.bench.naive import orthogonalize

    with OperationCounter() as counter:
        orthogonalize(torch.randn(8, 32))
    m, n = 8, 32
    assert counter.products == 15
    assert counter.flops == 5 * 2 * (2 * m * m * n + m * m * m)


def test_elements_are_what_is_read_and_what_is_written() -> None:
    a, b = torch.randn(6), torch.randn(6)
    matrix, right = torch.randn(2, 3), torch.randn(3, 5)

    def moved(operation: Callable[[], object]) -> int:
        with OperationCounter() as counter:
            operation()
        return counter.elements

    assert moved(lambda: a + b) == 3 * 6
    assert moved(lambda: a + 1) == 2 * 6
    assert moved(lambda: a.add_(b)) == 3 * 6
    assert moved(lambda: a.lerp_(b, 0.5)) == 3 * 6
    assert moved(lambda: a.mul_(2)) == 2 * 6
    assert moved(lambda: a.copy_(b)) == 2 * 6
    assert moved(lambda: a.zero_()) == 6
    assert moved(lambda: torch.empty(6)) == 0
    assert moved(lambda: a.view(2, 3).mT[0]) == 0
    assert moved(lambda: a.sum()) == 6 + 1
    assert moved(lambda: torch.add(a, b, out=a)) == 3 * 6
    assert moved(lambda: torch.cat([a, b])) == 2 * 12
    assert moved(lambda: matrix @ right) == 6 + 15 + 10
    assert moved(lambda: torch._foreach_add_([a, b], [b, a])) == 3 * 12
    assert moved(lambda: torch._foreach_add([a, b], 1)) == 2 * 12
    assert moved(lambda: a.to(torch.bfloat16)) == 2 * 6


def test_a_list_of_tensors_is_one_operation_and_views_are_told_apart() -> None:
    tensors = [torch.ones(3) for _ in range(7)]
    with OperationCounter() as counter:
        torch._foreach_mul_(tensors, 2)
        tensors[0].view(3, 1).unbind()
    assert (counter.operations, counter.views) == (3, 2)
    assert counter.by_name == {"aten._foreach_mul_": 1, "aten.view": 1, "aten.unbind": 1}


def test_marks_for_profilers_are_no_operations() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = torch.optim.SGD([parameter], lr=0.5, foreach=False)
    with OperationCounter() as counter:
        optimizer.step()
    assert counter.by_name == {"aten.add_": 1}
    assert parameter.tolist() == [0.5] * 3

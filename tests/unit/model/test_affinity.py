"""What student, teacher and pseudo label share is what each would compute alone."""

import pytest
import torch

from mal.model import affinity as affinity_module
from mal.model.affinity import TokenAffinity, prior_logits, share_of_object, token_affinity

TOKENS = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
BOX = torch.tensor([[0.2, 0.2, 0.8, 0.7], [0.0, 0.3, 0.5, 1.0]])


def test_the_figures_of_one_batch_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def counted(tokens: torch.Tensor, temperature: float) -> torch.Tensor:
        calls.append(temperature)
        return token_affinity(tokens, temperature)

    monkeypatch.setattr(affinity_module, "token_affinity", counted)
    shared = TokenAffinity(TOKENS, BOX)
    for _ in range(2):
        shared.prior_logits(0.1)
        shared.spread(torch.rand(2, 8, 8), 0.1)
        shared.weights(0.2)
    assert calls == [0.1, 0.2]


def test_shared_figures_are_bitwise_those_of_a_first_asking() -> None:
    shared = TokenAffinity(TOKENS, BOX)
    for _ in range(2):
        assert torch.equal(shared.prior_logits(0.1), prior_logits(TOKENS, BOX, 0.1))
    map_BMM = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = share_of_object(token_affinity(TOKENS, 0.1), map_BMM.flatten(1)).view(2, 4, 4)
    assert torch.equal(shared.spread(map_BMM, 0.1), expected)


def test_no_gradient_reaches_the_tokens() -> None:
    tokens = TOKENS.clone().requires_grad_()
    assert not TokenAffinity(tokens, BOX).prior_logits(0.1).requires_grad


def test_half_precision_around_it_changes_nothing() -> None:
    map_BMM = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1))
    plain, cast = TokenAffinity(TOKENS, BOX), TokenAffinity(TOKENS, BOX)
    with torch.autocast("cpu", torch.bfloat16):
        found = cast.prior_logits(0.1), cast.spread(map_BMM, 0.1)
    assert torch.equal(found[0], plain.prior_logits(0.1))
    assert torch.equal(found[1], plain.spread(map_BMM, 0.1))

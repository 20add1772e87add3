"""Prompt lookup: what stood after the last tokens where they came before is tried as what comes next.

The idea is Saxena's (github.com/apoorvumang/prompt-lookup-decoding), and transformers has it under the same names. One
graph call computes all tokens of such a draft, which takes little longer than one token, and the row chooses each token
itself (`Row.follow`), so a wrong draft costs time and changes nothing.
"""

import numpy as np

_LONGEST_REST = 63  # tokens after drafts that were all wrong before the next one is tried


def looked_up(tokens: np.ndarray, most: int, ngram: int) -> list[int]:
    """`most` tokens that followed the last ones where these stood before; [] where they did not.

    tokens int (length): prompt and answer, -1 where something else than a token stands, which ends what is found.
    ngram: how many of the last tokens are looked for at most, and at least two of them unless it is 1. The longest
    match counts, and of several the last one. What follows may reach into itself: after a, b, a, b comes a, b, a, b.
    """
    last = len(tokens) - 1
    found = np.flatnonzero(tokens[:last] == tokens[last])
    for back in range(1, min(ngram, last + 1)):
        longer = found[found >= back]
        longer = longer[(tokens[longer - back] == tokens[last - back]) & (tokens[last - back] >= 0)]
        if not len(longer):
            if back == 1:  # one token alone says too little
                return []
            break
        found = longer
    if not len(found):
        return []
    before = tokens[found[-1] + 1 :]
    draft = before[np.arange(most) % len(before)]
    ends = np.flatnonzero(draft < 0)
    return draft[: ends[0] if len(ends) else most].tolist()


def rest(misses: int) -> int:
    """For how many tokens no draft is tried after so many in a row that were wrong.

    A draft with one right token is wrong too: the graph call and what takes it back last as long as two steps.
    """
    return min(2**misses - 1, _LONGEST_REST)

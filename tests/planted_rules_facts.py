"""Unsound variants of the facts about programs, and of outward rounding."""

from __future__ import annotations

from .planted import Plant

FIRST = "compiler.first_position"
RESOLVING = "compiler.resolving"
FIBRES = "compiler.fibres"
WIDTHS = "compiler.widths"
RANGES = "compiler.ranges"
ANALYSIS = "compiler.analysis"
MEANS = "compiler.means"
ROUND = "verifier.rounding"

FACTS_SHARES = [
    Plant(
        FIRST,
        "return bool(table.all())",
        "return bool(table.any())",
        "some query's selecting position 0 is enough",
        "count without BOS and without place 0",
    ),
    Plant(
        FIRST,
        "or share.selector != width.selector",
        "",
        "the share may be of another selector",
        "a width share by the share of another",
    ),
    Plant(
        FIRST,
        "if not isinstance(either, Or) or either.left != width.selector or",
        "if not isinstance(either, Or) or",
        "the count may be of another selector",
        "a width share by the count of another",
    ),
    Plant(
        FIRST,
        "or not (zero.table == first[:, None]).all()",
        "",
        "the position counted besides may be any",
        "a width share that adds no place",
    ),
    Plant(
        FIRST,
        "or zero.keys != 1",
        "",
        "the position counted besides may be told by any node",
        "a width share that adds the last place",
    ),
    Plant(
        FIRST,
        "if not isinstance(value, Map) or value.args != (1,):",
        "if not isinstance(value, Map):",
        "marks may be of tokens",
        "a width share of marked tokens",
    ),
    Plant(
        FIRST,
        "return marked == [v == 0 for v in positions] and analysis.nonempty(width.selector)",
        "return analysis.nonempty(width.selector)",
        "any positions may be marked",
        "a width share of marked places",
    ),
    Plant(
        FIRST,
        "return marked == [v == 0 for v in positions] and analysis.nonempty(width.selector)",
        "return marked == [v == 0 for v in positions]",
        "the selection of a width share may be empty",
        "a width share of nothing",
    ),
    Plant(
        FIRST,
        "width = whole if share else whole - 1",
        "width = whole",
        "position 0 always counts",
        "a width share that is not less",
    ),
    Plant(
        FIRST,
        "if width >= 1 and index >= 0 and possible[index] and (not share or share * width == 1):",
        "if width >= 2 and index >= 0 and possible[index] and (not share or share * width == 1):",
        "a count of one is skipped",
        "a width share that is wrong for one",
    ),
    Plant(
        FIRST,
        "(not share or share * width == 1)",
        "share * width == 1",
        "counts without position 0 are skipped",
        "a width share that is wrong for one",
    ),
]

FACTS_RESOLVING = [
    Plant(
        FIBRES,
        "if (low[high >= 0] != high[high >= 0]).any():",
        "if False:",
        "a node need not be a function of what is read",
        "read from something coarser",
    ),
    Plant(
        FIBRES,
        "possible = analysis.possible_tuples(basis)",
        "possible = analysis.possible_tuples(basis) & (np.arange(sizes[0]) < 1).reshape(-1, *[1] * (len(sizes) - 1))",
        "only the first value of a basis node is looked at",
        "read from something coarser",
    ),
    Plant(
        RESOLVING,
        "memo[index] = None  # a width sum that refers to itself is not resolvable",
        "memo[index] = np.zeros([1] * len(reads), np.int32)",
        "a width sum may refer to itself",
        "a width sum of itself",
    ),
    Plant(
        RESOLVING,
        "axis = reads.index(index)",
        "axis = 0",
        "every node read is the first",
        "the place in place of the token",
    ),
    Plant(
        RESOLVING,
        "out = np.where((out >= 0) & ever[np.maximum(out, 0)], out, np.int32(UNRESOLVED))",
        "out = np.where((out > 0) & ever[np.maximum(out, 0)], out, np.int32(UNRESOLVED))",
        "the first value of a node is not resolved",
        "tokens are copied weakly",
    ),
    Plant(
        RESOLVING,
        "table = [int(coefficient * v * scale) if",
        "table = [int(v * scale) if",
        "the coefficients of a linear combination are dropped",
        "twice a number is the number",
    ),
    Plant(
        RESOLVING,
        "np.zeros([1] * (args[0].ndim if args else 0), dtype) + int(constant * scale)",
        "np.zeros([1] * (args[0].ndim if args else 0), dtype)",
        "the constant of a linear combination is dropped",
        "a number and one is the number",
    ),
]

FACTS_COUNTS = [
    Plant(
        WIDTHS,
        "hi[n] = np.minimum(hi[n], np.where(some, visible_hi, 0))",
        "hi[n] = np.minimum(hi[n], np.where(some, 1, 0))",
        "of what may be selected there is one at most",
        "a count that is wrong for three",
    ),
    Plant(
        WIDTHS,
        "lo[n] = np.maximum(lo[n], np.where(every, visible_lo, 0))",
        "lo[n] = np.maximum(lo[n], np.where(some, 1, 0))",
        "what may be selected is selected",
        "a count that is wrong for none",
    ),
    Plant(
        WIDTHS,
        "lo[n] = np.maximum(lo[n], np.where(self_every & self_some, 1, 0))",
        "lo[n] = np.maximum(lo[n], np.where(self_some, 1, 0))",
        "a key like the query that may be selected is selected",
        "a count that is wrong for none",
    ),
    Plant(
        WIDTHS,
        "hi[n] = np.minimum(hi[n], np.where(self_some, n, visible_hi - 1))",
        "hi[n] = np.minimum(hi[n], visible_hi - 1)",
        "a position never selects itself",
        "a count that is wrong for three",
    ),
    Plant(
        WIDTHS,
        "visible_lo, visible_hi = np.ones(n_queries, np.int32), np.full(n_queries, n, np.int32)",
        "visible_lo = visible_hi = np.full(n_queries, n, np.int32)",
        "under a causal mask all positions are visible",
        "a causal count that is wrong for one",
    ),
    Plant(
        WIDTHS,
        "visible_lo = visible_hi = position + np.int32(1)",
        "visible_lo = visible_hi = position",
        "under a causal mask a position does not see itself",
        "a causal count that is wrong for three",
    ),
    Plant(
        WIDTHS,
        "else values[:, None] <= position",
        "else values[:, None] < position",
        "under a causal mask a position does not count itself",
        "a causal count that is wrong for three",
    ),
    Plant(
        WIDTHS,
        "if ranges.causal and position is None:\n            for_lo",
        "if False:\n            for_lo",
        "under a causal mask all places are counted",
        "a causal count of places that is wrong for one",
    ),
    Plant(
        WIDTHS,
        "if isinstance(ranges.nodes[node], Indices) or (not ranges.causal and permutation(ranges, node))",
        "if True",
        "every node has distinct values",
        "a count that is wrong for three",
    ),
    Plant(
        WIDTHS,
        "for_lo = for_hi & ~fail[word]",
        "for_lo = for_hi",
        "a place that may be selected is selected",
        "a count of one place that is wrong for none",
    ),
    Plant(
        WIDTHS,
        "if ranges.causal or not isinstance(node, Width) or width in ranges.failed:",
        "if not isinstance(node, Width) or width in ranges.failed:",
        "a causal count may be a rank",
        "a causal rank",
    ),
    Plant(
        WIDTHS,
        "if not np.array_equal(table, phi[:, None] < phi[None, :]):",
        "if False:",
        "any count is a rank",
        "what is counted is no rank",
    ),
    Plant(
        WIDTHS,
        "return is_function_of(fact.phi,",
        "return True or is_function_of(fact.phi,",
        "a rank with ties is a permutation",
        "two places of one rank",
    ),
    Plant(
        WIDTHS,
        "return bool((first[keys] == images).all())",
        "return bool((first[keys] == images).any())",
        "a function need hold somewhere only",
        "two tokens of one rank",
    ),
]

FACTS_RANGES = [
    Plant(
        ANALYSIS,
        "bad = np.flatnonzero(occurs & (image < 0))",
        "bad = np.flatnonzero(occurs & (image < -1))",
        "the program need not be total",
        "a partial program",
    ),
    Plant(
        RANGES,
        "done[current] = ~done[node.arg]",
        "done[current] = done[node.arg]",
        "not is dropped where ranges are found",
        "a count that is wrong, by not",
    ),
    Plant(
        RANGES,
        "done[current] = done[node.left] & done[node.right]",
        "done[current] = done[node.left]",
        "the right side of and is dropped where ranges are found",
        "a count that is wrong, by and",
    ),
    Plant(
        RANGES,
        "done[current] = done[node.left] | done[node.right]",
        "done[current] = done[node.left]",
        "the right side of or is dropped where ranges are found",
        "a count that is wrong, by or",
    ),
    Plant(
        ANALYSIS,
        "singular = (hi <= 1) | ~possible",
        "singular = (hi <= 2) | ~possible",
        "two selected positions are one",
        "a mean of two is another number",
    ),
    Plant(
        ANALYSIS,
        "singular[n] |= ranges.at(picked, n).sum(axis=0) <= 1",
        "singular[n] |= ranges.at(picked, n).sum(axis=0) <= 2",
        "two selected values are one",
        "uneven mean",
    ),
    Plant(
        ANALYSIS,
        "picked = picked & asked.reshape(",
        "asked = asked & np.uint64(0)\n    picked = picked & asked.reshape(",
        "what is selected is not found",
        "weak gap",
    ),
    Plant(
        ANALYSIS,
        "singular[n] |= ranges.at(by_rank, n).sum(axis=0) <= 1",
        "singular[n] = True",
        "positions that ranks select have one value",
        "a mean over all ranks is another number",
    ),
    Plant(
        ANALYSIS,
        "return widths.is_function_of(fact.phi, ranges.function(value, fact.cut))",
        "return True",
        "the value need not follow the rank",
        "two tokens of one rank",
    ),
    Plant(
        ANALYSIS,
        "empty = np.bitwise_or.reduce(ranges.pack(possible & (lo == 0)), axis=1)",
        "empty = np.bitwise_or.reduce(ranges.pack(possible & (lo < 0)), axis=1)",
        "defaults never occur",
        "nothing is selected by two atoms",
    ),
    Plant(
        ANALYSIS,
        "return bool((lo[possible] >= 1).all())",
        "return bool((lo[possible] >= 0).all())",
        "a selection is never empty",
        "wrong default",
    ),
    Plant(
        ANALYSIS,
        "return bool((lo[possible] >= 1).all())",
        "return bool((lo[possible] >= 1).any())",
        "a selection that is not empty somewhere is not empty",
        "wrong default",
    ),
    Plant(
        ANALYSIS,
        "return bool(selection(self.ranges, node.selector, node.value).singular.all())",
        "return True",
        "all selected values are equal",
        "uneven mean",
    ),
    Plant(
        ANALYSIS,
        "table = np.arange(ranges.max_len + 1)[:, None] > positions[None, :]",
        "table = np.arange(ranges.max_len + 1)[:, None] > positions[None, :] + 1",
        "the last place is impossible",
        "a place is not found",
    ),
    Plant(
        ANALYSIS,
        "np.where(self.possible_tuples(reads), found,",
        "np.where(self.possible_tuples(reads) & (found < 2), found,",
        "later values are impossible",
        "an output is missing",
    ),
    Plant(
        ANALYSIS,
        "keep = image >= 0\n    return group_or",
        "keep = image > 0\n    return group_or",
        "a map's first value is impossible",
        "lost additions",
    ),
    Plant(
        ANALYSIS,
        "for pair, bits in mean_lengths(_averaged(",
        "for pair, bits in mean_lengths({} and _averaged(",
        "means do not occur",
        "mean encoded as something else",
    ),
    Plant(
        ANALYSIS,
        "table[n, : n + 1] = np.cumsum(steps[: n + 1]) > 0",
        "table[n, :n] = np.cumsum(steps[:n]) > 0",
        "the largest width is impossible",
        "a count that is wrong for three",
    ),
    Plant(
        MEANS,
        "for m in range(2, max(largest.values()) + 1):",
        "for m in range(2, max(largest.values())):",
        "the mean of the most values is impossible",
        "a mean of three is another number",
    ),
]

ROUNDING = [
    Plant(
        ROUND,
        "rad = rad + left.rad @ (size_right + right.rad)",
        "pass",
        "the left factor's radius is dropped",
        "curious BOS",
    ),
    Plant(
        ROUND,
        "rad = rad + size_left @ right.rad",
        "pass",
        "the right factor's radius is dropped",
        "BOS curious for noise",
    ),
    Plant(
        ROUND,
        "return Enclosure(mid, widen(self.rad + other.rad + U * np.abs(mid), 3))",
        "return Enclosure(mid, widen(self.rad + U * np.abs(mid), 3))",
        "the second summand's radius is dropped",
        "tight gap",
    ),
    Plant(
        ROUND,
        "return Enclosure(mid, widen(self.rad * abs(factor) + U * np.abs(mid) + lost, 3))",
        "return Enclosure(mid, widen(self.rad + U * np.abs(mid) + lost, 3))",
        "a radius is not scaled",
        "scaled noise that BOS asks for",
    ),
    Plant(
        ROUND,
        "return Enclosure(self.mid, widen(self.rad + error, 1))",
        "return Enclosure(self.mid, self.rad)",
        "an added error is dropped",
        "noise in values",
    ),
    Plant(
        ROUND,
        "return between(np.maximum(self.low, 0.0), np.maximum(self.high, 0.0))",
        "return Enclosure.exact(np.maximum(self.mid, 0.0))",
        "relu forgets the radius",
        "noise in values",
    ),
    Plant(
        ROUND,
        "return widen(size @ np.abs(matrix) + underflow((size,), (matrix,)), size.shape[-1] + 2)",
        "return widen(np.abs(size @ matrix) + underflow((size,), (matrix,)), size.shape[-1] + 2)",
        "errors cancel",
        "noise of two neurons that would cancel",
    ),
    Plant(
        ROUND,
        'if x > 700:\n        return float("inf")\n    return float(np.exp(x))',
        "if x > 700:\n        return 0.0\n    return float(np.exp(x))",
        "exp of large numbers is 0",
        "curious BOS",
    ),
    Plant(
        ROUND,
        "return widen(np.abs(self.mid) + self.rad, 1)",
        "return np.abs(self.mid)",
        "the size forgets the radius",
        "noise in values",
    ),
]

FACT_PLANTS = [*FACTS_SHARES, *FACTS_RESOLVING, *FACTS_COUNTS, *FACTS_RANGES, *ROUNDING]

"""Unsound variants of counting, of the identities between selectors, and of the abstract state."""

from __future__ import annotations

from .planted import Plant

HEAD, IDENTITY, STATE = "verifier.head_rule", "verifier.selector_identity", "verifier.abstract_state"

HEAD_WIDTH = [
    Plant(
        HEAD,
        "rho = np.maximum(rho, apart[index])",
        "rho = rho",
        "a count need not be its encoding",
        "weak count",
    ),
    Plant(
        HEAD,
        "rho = np.maximum(rho, apart[index])",
        "rho = np.minimum(rho, (result - Enclosure.exact(encoding[index])).size)",
        "the best count speaks for all",
        "weak count",
    ),
    Plant(
        HEAD,
        "result = _times(share, sink) + _times(rest, values)",
        "result = _times(share, sink)",
        "the keys' values are dropped from a count",
        "keys have values",
    ),
    Plant(
        HEAD,
        "result = _times(share, sink) + _times(rest, values)",
        "result = _times(Enclosure.exact(share.mid), sink) + _times(rest, values)",
        "the uncertainty of the share is dropped",
        "louder count without BOS",
    ),
    Plant(
        HEAD,
        "if not selects_first(c.an, node.selector):",
        "if False:",
        "without BOS position 0 need not be selected",
        "count without BOS and without place 0",
    ),
    Plant(
        HEAD,
        "others = (self.base + c.others(self.state, (1,), self.tables, c.config.d_model)).plus_error(self.error)",
        "others = self.base.plus_error(self.error)",
        "without BOS other nodes' values are dropped",
        "count without BOS, tokens have values",
    ),
    Plant(
        HEAD,
        "others = (self.base + c.others(self.state, (1,), self.tables, c.config.d_model)).plus_error(self.error)",
        "others = self.base + c.others(self.state, (1,), self.tables, c.config.d_model)",
        "without BOS the values' error is dropped",
        "count without BOS of noise",
    ),
    Plant(
        HEAD,
        "return others + table[first][0], others + rest, 1",
        "return others + table[first][0], others, 1",
        "without BOS the places' values are dropped",
        "count without BOS, places have values",
    ),
    Plant(
        HEAD,
        "rest = between(later.low.min(axis=0), later.high.max(axis=0))",
        "rest = between(later.low.min(axis=0), later.low.min(axis=0))",
        "without BOS the largest value of a place is dropped",
        "count without BOS, places have values",
    ),
    Plant(
        HEAD,
        "return others + table[first][0], others + rest, 1",
        "return others + table[first][0], others + rest, 0",
        "position 0 is counted twice",
        "count without BOS of one more, at low scores",
    ),
    Plant(
        HEAD,
        "ratio_high, ratio_low = exp_high(self.big_a - self.a), exp_low(self.a - self.big_a)",
        "ratio_high, ratio_low = 1.0, exp_low(self.a - self.big_a)",
        "no selected key is louder than position 0",
        "slightly louder count without BOS",
    ),
    Plant(
        HEAD,
        "ratio_high, ratio_low = exp_high(self.big_a - self.a), exp_low(self.a - self.big_a)",
        "ratio_high, ratio_low = exp_high(self.big_a - self.a), 1.0",
        "no selected key is softer than position 0",
        "slightly softer count without BOS",
    ),
    Plant(
        HEAD,
        "ratio_out = exp_high(self.u - self.a)",
        "ratio_out = 0.0",
        "without BOS other keys' weight is dropped",
        "weak count without BOS",
    ),
    Plant(
        HEAD,
        "ratio_high, ratio_low, ratio_out = exp_high(self.big_a), exp_low(self.a), exp_high(self.u)",
        "ratio_high, ratio_low, ratio_out = 1.0, exp_low(self.a), exp_high(self.u)",
        "no selected key is louder than BOS",
        "slightly loud count",
    ),
    Plant(
        HEAD,
        "ratio_high, ratio_low, ratio_out = exp_high(self.big_a), exp_low(self.a), exp_high(self.u)",
        "ratio_high, ratio_low, ratio_out = exp_high(self.big_a), 1.0, exp_high(self.u)",
        "no selected key is softer than BOS",
        "slightly soft count",
    ),
    Plant(
        HEAD,
        "ratio_high, ratio_low, ratio_out = exp_high(self.big_a), exp_low(self.a), exp_high(self.u)",
        "ratio_high, ratio_low, ratio_out = exp_high(self.big_a), exp_low(self.a), 0.0",
        "other keys' weight is dropped from a count",
        "weak count",
    ),
    Plant(
        HEAD,
        "above += (self.c.max_len - w) * ratio_out if w < self.c.max_len else 0.0",
        "above += ratio_out",
        "one other key is there when counting",
        "two others count",
    ),
    Plant(
        HEAD,
        "above = rivals * ratio_high if rivals else 0.0",
        "above = ratio_high",
        "one selected key is there when counting",
        "count of points in between",
    ),
    Plant(
        HEAD,
        "most = 1.0 / (1 + rivals * ratio_low if rivals else 1.0)",
        "most = 1.0 / (1 + rivals * ratio_high if rivals else 1.0)",
        "the share's upper bound is its lower one",
        "count of other points",
    ),
    Plant(
        HEAD,
        "least = 1.0 / (1 + above)",
        "least = 1.0 / (1 + rivals * ratio_low)",
        "the share's lower bound is its upper one",
        "weak count",
    ),
]

SELECTORS = [
    Plant(
        IDENTITY,
        "return _sums_to(analysis, selector, [(1, _Conjunction(tuple(atoms)))])",
        "return True",
        "the atoms need not be the selector",
        "atoms of another selector",
    ),
    Plant(
        IDENTITY,
        "if truth is not None and not _excess(analysis, selector, parts, truth).any():",
        "if truth is not None and not _excess(analysis, selector, parts, truth).all():",
        "an identity holds if it holds somewhere",
        "atoms of another selector",
    ),
    Plant(
        IDENTITY,
        "return not together.any()",
        "return not together.all()",
        "an identity holds if it holds on some joint values",
        "atoms that differ where they can and cannot",
    ),
    Plant(
        IDENTITY,
        "together = _lengths(analysis, keys)[:, key_at] & _lengths(analysis, queries)[:, query_at]",
        "together = _lengths(analysis, keys)[:, key_at] & ~_lengths(analysis, queries)[:, query_at]",
        "values of one length are taken for impossible together",
        "count of all",
    ),
    Plant(
        IDENTITY,
        "total: Counts = -evaluate(selector).astype(np.int64)",
        "total: Counts = -evaluate(selector).astype(np.int64) * 0 - 1",
        "the selector selects all",
        "count of all",
    ),
    Plant(
        IDENTITY,
        "result = result & truth[id(atom)]",
        "result = result | truth[id(atom)]",
        "one atom is enough",
        "a mean over equal places only",
    ),
    Plant(
        IDENTITY,
        "total = total + count * evaluate(operand)",
        "total = total + evaluate(operand)",
        "coefficients of a width sum are dropped",
        "twice the width of the same",
    ),
    Plant(
        IDENTITY, "return ~evaluate(node.arg)", "return evaluate(node.arg)", "not is dropped", "a count of the others"
    ),
    Plant(
        IDENTITY,
        "return evaluate(node.left) & evaluate(node.right)",
        "return evaluate(node.left)",
        "the right side of and is dropped",
        "a count of one condition of two",
    ),
    Plant(
        IDENTITY,
        "return evaluate(node.left) | evaluate(node.right)",
        "return evaluate(node.left)",
        "the right side of or is dropped",
        "a count of one condition of either",
    ),
    Plant(
        IDENTITY,
        "rows = leaf.table[np.maximum(sides[0], 0)]",
        "rows = leaf.table[np.maximum(sides[0] * 0, 0)]",
        "all keys are the first",
        "a count that is right for a",
    ),
    Plant(
        IDENTITY,
        "found: Bits = rows[:, np.maximum(sides[1], 0)]",
        "found: Bits = rows[:, np.maximum(sides[1] * 0, 0)]",
        "all queries are the first",
        "atoms of another selector",
    ),
    Plant(
        IDENTITY,
        "codes.append(np.flatnonzero(np.bincount(code.reshape(-1), minlength=1)))",
        "codes.append(np.flatnonzero(np.bincount(code.reshape(-1), minlength=1))[:1])",
        "one combination of truth values speaks for all",
        "atoms of another selector",
    ),
    Plant(
        IDENTITY,
        "truth[id(leaf)] = (choices[:, column] >> bit & 1).astype(bool)",
        "truth[id(leaf)] = (choices[:, column] & 1).astype(bool)",
        "a group's selects are all the first",
        "atoms of another selector",
    ),
]

STATES = [
    Plant(
        STATE,
        "np.where(back, np.abs(total) * 2.0**-52, 0.0).max(axis=0)",
        "0.0",
        "encodings add up exactly",
        "lost additions",
    ),
    Plant(
        STATE,
        "self.terms[node] = matrix",
        "self.terms.setdefault(node, matrix)",
        "what is written a second time is dropped",
        "a second write outweighs the first",
    ),
    Plant(
        STATE, "np.where(self.const != 0, np.abs(total) * 2.0**-52, 0.0)", "0.0", "biases add up exactly", "lost biases"
    ),
    Plant(STATE, "self.const = total", "pass", "biases are dropped", "stray bias of neurons"),
    Plant(
        STATE,
        "self.bos = self.bos + Enclosure.exact(bias)",
        "pass",
        "biases are dropped at BOS",
        "a bias at BOS that tokens undo",
    ),
    Plant(
        STATE,
        "return rows.low.min(axis=0), rows.high.max(axis=0)",
        "return rows.low.max(axis=0), rows.high.max(axis=0)",
        "the hull has no lower side",
        "the place is read too",
    ),
    Plant(
        STATE,
        "return rows.low.min(axis=0), rows.high.max(axis=0)",
        "return rows.low.min(axis=0), rows.high.min(axis=0)",
        "the hull has no upper side",
        "noise at the read-out",
    ),
    Plant(
        STATE,
        "if len(set(reads)) != len(reads):",
        "if False:",
        "a node that is read twice counts twice",
        "read twice, it would win",
    ),
    Plant(
        STATE,
        "return Enclosure.exact(np.zeros(width)) if self.null(state, reads, tables) else between(low, high)",
        "return Enclosure.exact(np.zeros(width))",
        "nodes that are not read are dropped",
        "the place is read too",
    ),
    Plant(
        STATE,
        "for rows in (self.rows(n, tables[n]) for n in state.terms if n not in reads)",
        "for rows in (self.rows(n, tables[n])[:1] for n in state.terms if n not in reads)",
        "a node whose first value adds nothing adds nothing",
        "the place is read too",
    ),
    Plant(
        STATE,
        "self.max_len = max(analysis.lengths)",
        "self.max_len = min(analysis.lengths)",
        "the shortest input speaks for all",
        "tight others",
    ),
    Plant(
        STATE,
        "if self.shares.get(node) == tuple(reads):",
        "if node in self.shares:",
        "a width share is read from any nodes",
        "a width share of other counts",
    ),
    Plant(
        STATE,
        "self._ever[node] = self.an.ever(node)",
        "self._ever[node] = self.an.ever(node) & (np.arange(len(self.an.ever(node))) < 2)",
        "later values are taken for impossible",
        "the place is read too",
    ),
]

SELECTOR_PLANTS = [*HEAD_WIDTH, *SELECTORS, *STATES]

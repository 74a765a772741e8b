"""The library of programs: each builds an s-op, has a reference in plain Python, and is tested at every level.

`programs.sort()` builds the program; `programs.LIBRARY["sort"]` says what it computes, over which tokens, and whence.
"""

from __future__ import annotations

from types import MappingProxyType

from . import arithmetic, averages, brackets, counting, ordering, patterns, positions
from .arithmetic import add_binary as add_binary
from .arithmetic import add_decimal as add_decimal
from .arithmetic import carries as carries
from .arithmetic import compare_binary as compare_binary
from .arithmetic import divisible_by_three as divisible_by_three
from .arithmetic import gray_code as gray_code
from .arithmetic import increment as increment
from .arithmetic import leading_zeros as leading_zeros
from .arithmetic import negate as negate
from .averages import difference as difference
from .averages import frac_before as frac_before
from .averages import frac_prevs as frac_prevs
from .averages import majority as majority
from .averages import majority_so_far as majority_so_far
from .averages import mean as mean
from .averages import nary_ratio as nary_ratio
from .averages import percent_so_far as percent_so_far
from .averages import running_mean as running_mean
from .averages import window_count as window_count
from .averages import window_mean as window_mean
from .averages import window_sum as window_sum
from .brackets import abc_blocks as abc_blocks
from .brackets import bracket_depth as bracket_depth
from .brackets import dyck1_bounded as dyck1_bounded
from .brackets import dyck2 as dyck2
from .brackets import dyck2_bounded as dyck2_bounded
from .brackets import nearly_balanced as nearly_balanced
from .brackets import nested_pairs as nested_pairs
from .brackets import pair_balance as pair_balance
from .brackets import shuffle_dyck1 as shuffle_dyck1
from .brackets import shuffle_dyck2 as shuffle_dyck2
from .brackets import shuffle_dyck3 as shuffle_dyck3
from .counting import all_distinct as all_distinct
from .counting import contains as contains
from .counting import count as count
from .counting import count_bigram as count_bigram
from .counting import count_distinct as count_distinct
from .counting import count_less_freq as count_less_freq
from .counting import count_runs as count_runs
from .counting import dense_rank as dense_rank
from .counting import double_hist as double_hist
from .counting import has_duplicate as has_duplicate
from .counting import hist as hist
from .counting import histogram as histogram
from .counting import inversions as inversions
from .counting import is_first_occurrence as is_first_occurrence
from .counting import is_last_occurrence as is_last_occurrence
from .counting import is_unique as is_unique
from .counting import length as length
from .counting import parity as parity
from .counting import prefix_count as prefix_count
from .counting import prefix_count_of as prefix_count_of
from .counting import prefix_length as prefix_length
from .counting import prefix_parity as prefix_parity
from .counting import rank as rank
from .counting import remaining_count as remaining_count
from .entry import Entry as Entry
from .ordering import argmax as argmax
from .ordering import argmin as argmin
from .ordering import argsort as argsort
from .ordering import count_records as count_records
from .ordering import is_record as is_record
from .ordering import is_sorted as is_sorted
from .ordering import kth_smallest as kth_smallest
from .ordering import least_frequent as least_frequent
from .ordering import maximum as maximum
from .ordering import median as median
from .ordering import midrange as midrange
from .ordering import minimum as minimum
from .ordering import most_frequent as most_frequent
from .ordering import reverse_by_sort as reverse_by_sort
from .ordering import reverse_by_sort_unique as reverse_by_sort_unique
from .ordering import running_maximum as running_maximum
from .ordering import second_maximum as second_maximum
from .ordering import sort as sort
from .ordering import sort_descending as sort_descending
from .ordering import sort_distinct as sort_distinct
from .ordering import sort_freq as sort_freq
from .ordering import sort_unique as sort_unique
from .ordering import spread as spread
from .ordering import stable_rank as stable_rank
from .patterns import contains_pattern as contains_pattern
from .patterns import detect_pattern as detect_pattern
from .patterns import gap as gap
from .patterns import induction as induction
from .patterns import is_subset as is_subset
from .patterns import no_three_zeros as no_three_zeros
from .patterns import previous_occurrence as previous_occurrence
from .patterns import run_length as run_length
from .patterns import run_position as run_position
from .patterns import set_difference as set_difference
from .patterns import set_intersection as set_intersection
from .patterns import smallest_missing as smallest_missing
from .positions import alternate_case as alternate_case
from .positions import compact as compact
from .positions import deduplicate as deduplicate
from .positions import echo as echo
from .positions import equals_first as equals_first
from .positions import equals_previous as equals_previous
from .positions import every_second as every_second
from .positions import identity as identity
from .positions import is_palindrome as is_palindrome
from .positions import last_token as last_token
from .positions import nary_sequencemap as nary_sequencemap
from .positions import nested_gather as nested_gather
from .positions import next_token as next_token
from .positions import reverse as reverse
from .positions import rotate as rotate
from .positions import shift_by as shift_by
from .positions import swap_neighbours as swap_neighbours
from .positions import token_at as token_at

_THEMES = (arithmetic, averages, brackets, counting, ordering, patterns, positions)

LIBRARY = MappingProxyType(
    {entry.name: entry for entry in sorted((e for theme in _THEMES for e in theme.ENTRIES), key=lambda e: e.name)}
)
"""All programs by name, in alphabetical order; `programs.NAME(**options)` builds the one called NAME."""

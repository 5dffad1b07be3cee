"""All laws, by number, each in one line. What a report has rows for, and what a law's test has to be named after.

``docs/laws.md`` tells the same laws to people, under headings.
"""

from __future__ import annotations

import re

LAWS: dict[str, str] = {
    "C1": "A commit is visible whole or not at all, to every reader and after any crash.",
    "C2": "A handle serves one session; a commit for another is refused.",
    "C3": (
        "A stamp with a receipt gives the recorded result and writes nothing, with or without a lease; a release in "
        "it still counts. Other content under the same turn id is a conflict."
    ),
    "C4": "Anything else needs the live lease: same incarnation, lease token and fencing token, not expired.",
    "C5": (
        'The expected revision must be the current one; `None` means that there is no head yet, never "do not check".'
    ),
    "C6": "A completion must own exactly the rows of its claim.",
    "C7": (
        "Checks run in a fixed order (limits, deletion, C2 to C6, graph, blobs, attachments); the first that fails is "
        "the error. The revision advances by one."
    ),
    "C8": "A refused or failed commit leaves every row as it was.",
    "C9": (
        "The turn hash covers what a turn means. Ids that the commit introduces count by their order; times, tokens "
        "and leases do not count; references and foreign JSON do."
    ),
    "C10": "Usage adds up per source and model, all five counters, once.",
    "C11": "A commit costs what it adds, not how long the session is.",
    "C12": "If the answer to COMMIT is lost, the caller is told so, and the same stamped commit sent again lands once.",
    "C13": "A cancelled write that has not started is withdrawn; no cancellation leaves a transaction open.",
    "C14": "The outbox is enqueued with the commit, or not at all.",
    "G1": (
        "Node ids are unique, tombstoned ones included. Parents are live or earlier in the same commit. The leaf is "
        "live, or None where the session stands on None already."
    ),
    "G2": (
        "A full load gives every live node in commit order, a path the exact ancestry of a leaf or its end, from one "
        "snapshot."
    ),
    "G3": "A damaged graph is an error on every scope, never a shorter conversation.",
    "G4": (
        "`ReplaceFull` replaces and may use the replaced ids again, `Append` adds, `Unchanged` moves the leaf at most."
    ),
    "G5": (
        "Tombstones hide whole branches at once, move the leaf to the nearest live ancestor and advance the revision."
    ),
    "L1": "At most one live lease per session; everybody else gets `Busy` and who holds it.",
    "L2": (
        "The same incarnation re-enters: same fencing token, fresh lease token. The earlier entry is superseded, its "
        "rows are granted again first."
    ),
    "L3": "Every other grant has a greater fencing token.",
    "L4": "A fence that is stale, superseded, released or expired is refused.",
    "L5": "A release clears the lease it names, and no other; twice is fine.",
    "L6": (
        "A live lease is taken early only from a process that is provably dead on this host, and only if it still is "
        "the holder."
    ),
    "K1": "A claim needs the live lease and lives as long as that; renewing verifies.",
    "K2": "Rows without a live claim are claimable again, each time under a greater claim token.",
    "K3": "Giving a claim back frees what it still owns; twice is fine.",
    "K4": "However many rows are held or not ready, what stands behind them is found.",
    "I1": "A source key is bound to one submission while its evidence is kept.",
    "I2": "Input is served in the order of admission; lists hide what is held or settled.",
    "I3": "Input for the active turn is claimed by that turn at a boundary it admits, other input between turns.",
    "I4": "No input is stranded: what its turn can no longer take counts as input for the next.",
    "I5": "A commit that names an interrupted turn leaves the rest of its input to the next turn, once.",
    "I6": (
        "Cancelling refuses what a live claim holds and says who holds it; bulk and suffix cancels are one transaction."
    ),
    "W1": "A source key sent again gives the original batch with its state.",
    "W2": "The head of the ready queue decides; commands are claimed one at a time.",
    "W3": "At a checkpoint inside a turn only work for the earliest boundary is admitted.",
    "W4": "Exclusive work is claimed alone; joinable work takes its equals that follow it.",
    "W5": "Exact claims never skip earlier work, and keep W2 to W4.",
    "W6": "Held work cannot be cancelled; a batch without items or of mixed classes is refused.",
    "T1": (
        "A session is on the agenda while it has something to claim and a free lane: none is ever missed, and one "
        "that has not is gone from it once somebody looked."
    ),
    "T2": (
        "What is for later can be listed and cancelled, and not be claimed before its time; the agenda says when "
        "the next session will be ready, ends of leases included."
    ),
    "T3": (
        "On the agenda a session of a greater priority comes first, among equals the one that has waited longest; "
        "those with a saturated label are passed over."
    ),
    "T4": (
        "A turn begins with the lane and what leads the session's one line, input or work and never both, at once "
        "or not at all. Where there is nothing to claim, nothing is touched."
    ),
    "T5": (
        "Each grant counts as an attempt until it is given back; entering again under the same lease grants the "
        "same rows and counts none. What has failed before is tried alone."
    ),
    "T6": (
        "A turn that failed gives its rows and its lane back at once, and nothing of its session is run before the "
        "delay is over; a lease that is not live fails nothing."
    ),
    "T7": (
        "Asking a turn to end reaches the holder of that lease, by its renewal and its agenda, and never its successor."
    ),
    "T8": "No turn begins beyond what the limit of a label allows, however many begin at once.",
    "Q1": (
        "What was tried too often is set aside with its error: no claim meets it, its source key stays bound, and "
        "no vacuum removes it; a deletion of its session does."
    ),
    "Q2": (
        "What was set aside is tried again behind all that waits, with no attempt counted, or is cancelled for "
        "good; each of it once."
    ),
    "Q3": "The quarantine is listed page by page, oldest first, of all sessions or of one.",
    "A1": "Content is named by the hash of its bytes; name, media type and size belong to the reference.",
    "A2": "An intent is durable before bytes are put; a commit can only stamp what its session's manifest has.",
    "A3": "A session reads only what its own manifest holds, and carries only blobs that its own head holds.",
    "A4": (
        "A sweep takes only what nobody holds, and marks it first; a new intent waits for the mark. Deleting a "
        "session leaves releases for the sweep."
    ),
    "A5": (
        "Content appears whole or not at all and outlives a reopening. An id is a hash and nothing else, so that none "
        "is a path; an unknown one is told as such."
    ),
    "E1": "What is kept under a reference never changes and outlives a reopening; an unknown reference is None.",
    "H1": (
        "Every revision has its row in the history: what kind of commit, which turn, when, on which leaf, what it "
        "used. Pages are bounded and complete in either direction."
    ),
    "H2": (
        "A session is read as a commit left it, on one snapshot: the whole active path, the usage until then, and the"
        " checkpoint."
    ),
    "H3": (
        "What of a revision can no longer be read, and a revision that there is not, is an error that says which and "
        "what to do; never a shorter conversation."
    ),
    "F1": (
        "A fork is a session of its own that begins with the active path to a node, a revision's leaf or the head, "
        "under the same ids, in one commit; its source stays as it is."
    ),
    "F2": (
        "A fork holds the checkpoint and frames that it begins with: no collection takes them, whatever becomes of "
        "its source."
    ),
    "F3": "Of its source's attachments a fork can read those that its path mentions, and no other.",
    "F4": (
        "An id that is taken, or a source, node or revision that is not there, is refused and leaves no trace; of "
        "forks that race for an id one wins."
    ),
    "D1": (
        "A description is given back as it was saved: labels as a set, the priority, the application's JSON byte for "
        "byte. A creation describes what nobody has described, and overwrites nothing. Refused: over 64 labels, "
        "labels that are not 1 to 128 printable bytes, a priority beyond 0 to 9."
    ),
    "D2": (
        "What a session is found by is what its description says: labels and priority change with it, together or not "
        "at all."
    ),
    "D3": "A listing by labels gives every session that has all of them, once, oldest first.",
    "R1": (
        "A worker is listed as it announced itself last, with the database's time of that, until it retires or is "
        "forgotten."
    ),
    "R2": (
        "A lane is listed as held from its grant until it is given back, with holder, fencing token and expiry, and "
        "never with what proves it."
    ),
    "M1": (
        "Collection deletes only what no retained head, frame or environment needs; a root that cannot be read stops "
        "it; a second run finds nothing."
    ),
    "M2": "Vacuum removes this session's tombstoned nodes, old evidence, and receipts only when asked.",
    "M3": (
        "Creating is idempotent and overwrites nothing. Reads bring nothing to life. A deletion is complete, and its "
        "old handles can never touch a session of the same name."
    ),
    "M4": "A record or database of an unknown version is refused by number; an older database is migrated.",
    "M5": "Every count in a report is what that call did.",
    "B1": (
        "Accepted: NUL inside JSON text, messages of 4 MB, 10,000 waiting rows, any 63-bit number. Refused before "
        "anything is written: lone surrogates, NUL in ids and keys, ids and keys over 512 bytes, negative counters, "
        "larger numbers, content over the configured budget (64 MiB)."
    ),
}
"""What each law says, in the order of the page."""

ATTACHMENT_LAWS = ("A1", "A2", "A3", "A4", "A5")
"""The laws that concern a store of attachments."""

_NAMED = re.compile(r"test_([a-z]\d+)_")


def law_of(test_name: str) -> str | None:
    """Give the number of the law that a test is named after, such as C3 for ``test_c3_…``; None where it names none."""
    found = _NAMED.match(test_name)
    law = found.group(1).upper() if found else None
    return law if law in LAWS else None

"""The law of environments: what is kept under a name never changes, and no collection takes it (E1)."""

from __future__ import annotations

import asyncio

import pytest

from fastness.conformance.builders import checkpoint, turn
from fastness.conformance.lab import Lab, refused
from fastness.conformance.subject import Power
from fastness.errors import DatabaseDamagedError, InvalidInputError, StoreError

DOCUMENT = '{"z": [1, 2.5], "env": {"PATH": "/bin", "ä": "\\u0000"}}'.encode()
SAME = b'{"env":{"\\u00e4":"\\u0000","PATH":"\\/bin"},\n "z":[ 1,25e-1 ]}'
REF = "97d6eb9d68fb5a7a399c44c48d6c80d63955ae99d97b8d2018b92b00c39a1f8d"
EMPTY = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


async def test_e1_an_environment_is_given_back_byte_for_byte(lab: Lab) -> None:
    """As it was put first: the same document in another layout has the same name and changes nothing."""
    for each in (DOCUMENT, SAME, DOCUMENT):
        await lab.envs().put_process_execution_env(REF, each)
    await lab.envs().put_process_execution_env(EMPTY, b" {} ")
    async for _ in lab.handles(await lab.store()):
        assert await lab.envs().get_process_execution_env(REF) == DOCUMENT
        assert await lab.envs().get_process_execution_env(EMPTY) == b" {} "
    await lab.assert_sound()


async def test_e1_an_unknown_environment_is_none(lab: Lab) -> None:
    """And looking for it writes nothing."""
    async with lab.unchanged():
        assert await lab.envs().get_process_execution_env(REF) is None
        assert await lab.envs().get_process_execution_env("whatever") is None


NO_ENVIRONMENTS = (b"", b"{", b"[1]", b'"text"', b"null", b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":"\xff"}')


async def test_e1_what_is_no_environment_under_its_name_is_refused(lab: Lab) -> None:
    """Another name than the document's own, and whatever is no JSON object with each key once."""
    envs = lab.envs()
    for ref, data in [
        (EMPTY, DOCUMENT),
        (REF.upper(), DOCUMENT),
        ("", DOCUMENT),
        *((REF, no) for no in NO_ENVIRONMENTS),
    ]:
        await refused(lab, InvalidInputError, envs.put_process_execution_env(ref, data))
        assert await lab.envs().get_process_execution_env(EMPTY) is None


async def test_e1_an_environment_put_by_many_at_once_is_there_once(lab: Lab) -> None:
    """Whoever comes first, through whichever handle, all read the same one document afterwards."""
    lab.needs(Power.ENVIRONMENTS)
    envs = (lab.envs(), lab.envs(await lab.second()))
    await asyncio.gather(
        *(envs[at % 2].put_process_execution_env(REF, (DOCUMENT, SAME)[at % 3 == 0]) for at in range(12))
    )
    found = {await each.get_process_execution_env(REF) for each in envs}
    assert len(found) == 1
    assert found < {DOCUMENT, SAME}


async def test_e1_an_environment_is_a_root_of_collection(lab: Lab) -> None:
    """A collection counts it as one, and keeps its content also where a checkpoint that is gone had the same."""
    store = await lab.store()
    await lab.envs().put_process_execution_env(REF, DOCUMENT)
    await turn(store, checkpoint=checkpoint(1, tool_state=DOCUMENT, plugin_snapshot=b"gone"))
    before = await store.gc_unreachable()
    assert (before.root_count, before.retained_blob_count, before.deleted_blob_count) == (2, 3, 0)
    await turn(store, checkpoint=checkpoint(2))
    after = await store.gc_unreachable()
    # The manifest of the first checkpoint and its plugins went; what stays is the second one's, and the environment.
    assert (after.root_count, after.retained_blob_count, after.deleted_blob_count) == (2, 2, 2)
    await lab.factory.delete_session("s")
    assert (await (await lab.store("other")).gc_unreachable()).deleted_blob_count == 1
    await lab.reopen("other")
    assert await lab.envs().get_process_execution_env(REF) == DOCUMENT
    await lab.assert_sound()


@pytest.mark.parametrize(
    "body", [b"garbage", b"{}", b"\x28\xb5\x2f\xfd"], ids=["garbage", "another one", "half a frame"]
)
async def test_e1_a_damaged_environment_is_an_error(lab: Lab, body: bytes) -> None:
    """It is never given as another one, and a collection that meets it deletes nothing (M1)."""
    store = await lab.store()
    await turn(store, checkpoint=checkpoint(1))
    await turn(store, checkpoint=checkpoint(2))
    await lab.envs().put_process_execution_env(REF, DOCUMENT)
    await lab.execute_raw("update blob set body = $1 where ref = (select blob from environment)", body)
    await refused(lab, DatabaseDamagedError, lab.envs().get_process_execution_env(REF))
    async with lab.unchanged():
        with pytest.raises(StoreError):
            await store.gc_unreachable()
    assert (await lab.check()).findings != ()

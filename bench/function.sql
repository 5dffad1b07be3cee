-- The limit for a commit on PostgreSQL: one call of one function on the server does all that a full turn commit does.
--
-- It looks at what a commit looks at (the lane's row under its lock, the head with the turn's receipt, the rows of the
-- claim), refuses what a commit refuses, and writes the same rows, byte for byte as long. What is in braces is put in
-- from the library's own values; the hashes of the contents are drawn from numbers, which costs less than hashing.
create function commit_turn(
    of_session bigint, turn bigint, token bigint, owner text, incarnation text, lease text
) returns bigint language plpgsql as $$
declare
    lane record;
    head record;
    now_ms bigint;
    held bigint;
    base bigint;
    leaf text := 'node-' || turn || '-3';
    claim text := md5(of_session || '-' || turn);
    state_ref text := md5(of_session || 's' || turn) || md5(turn || 's' || of_session);
    manifest_ref text := md5(of_session || 'm' || turn) || md5(turn || 'm' || of_session);
    manifest text := {manifest};
begin
    select l.fencing_token, l.owner_id, l.incarnation_id, l.lease_token, l.expires_ms into lane
    from lane l where l.sid = of_session for update;
    now_ms := extract(epoch from clock_timestamp()) * 1000;
    if lane.fencing_token <> token or lane.owner_id <> owner or lane.incarnation_id <> incarnation
            or lane.lease_token is distinct from lease or lane.expires_ms <= now_ms then
        raise exception 'the lease is not live';
    end if;

    select h.revision, h.leaf_node_id, h.node_count, h.next_seq, h.config, h.agent_frame_id, h.checkpoint_ref,
        h.checkpoint, c.turn_hash, c.manifest, c.changed_frames into head
    from head h left join commit_log c on c.sid = h.sid and c.turn_id = 'turn-' || turn and c.turn_hash is not null
    where h.sid = of_session;
    if head.revision <> turn - 1 or head.leaf_node_id <> 'node-' || turn - 1 || '-3' or head.turn_hash is not null then
        raise exception 'the head has moved';
    end if;
    base := head.next_seq;

    insert into node (sid, seq, node_id, parent_seq, crc, body) values
        (of_session, base, 'node-' || turn || '-0', base - 1, 2199433147, {node_0}),
        (of_session, base + 1, 'node-' || turn || '-1', base, 1871037357, {node_1}),
        (of_session, base + 2, 'node-' || turn || '-2', base + 1, 3653173165, {node_2}),
        (of_session, base + 3, leaf, base + 2, 69664205, {node_3});

    insert into blob (ref, body) values
        (state_ref, convert_to({state}, 'UTF8')), (manifest_ref, convert_to(manifest, 'UTF8'))
    on conflict (ref) do nothing;
    insert into blob_holder (sid, holder, ref) values
        (of_session, 'head', state_ref), (of_session, 'head', manifest_ref)
    on conflict (sid, holder, ref) do update set until_revision = null;
    -- A manifest ends with the name of the tool state and three more characters.
    update blob_holder b set until_revision = turn
    where b.sid = of_session and b.holder = 'head'
        and b.ref in (head.checkpoint_ref, left(right(head.checkpoint, 67), 64));

    insert into token_usage as u (sid, source, model, input_tokens, output_tokens, cache_read_tokens,
        cache_write_tokens, reasoning_output_tokens)
    values (of_session, 'turn', 'model-1', 1200, 150, 900, 0, 30)
    on conflict (sid, source, model) do update set input_tokens = u.input_tokens + excluded.input_tokens,
        output_tokens = u.output_tokens + excluded.output_tokens,
        cache_read_tokens = u.cache_read_tokens + excluded.cache_read_tokens,
        cache_write_tokens = u.cache_write_tokens + excluded.cache_write_tokens,
        reasoning_output_tokens = u.reasoning_output_tokens + excluded.reasoning_output_tokens;

    update head h set revision = turn, leaf_node_id = leaf, node_count = h.node_count + 4, next_seq = base + 4,
        checkpoint_ref = manifest_ref, checkpoint = manifest, updated_ms = now_ms
    where h.sid = of_session;
    insert into commit_log (sid, revision, kind, turn_id, turn_hash, leaf_node_id, checkpoint_ref, committed_ms,
        manifest, usage, next_seq, fencing_token)
    values (of_session, turn, 'turn', 'turn-' || turn, state_ref, leaf, manifest_ref, now_ms, manifest, {usage},
        base + 4, token);

    -- Looked at, deleted and kept at once: a function need not do that one after the other.
    with gone as (
        delete from turn_input i
        where i.sid = of_session and i.claim_id = claim and i.claim_token = 1 and i.lane_token = token
        returning i.sid, i.seq, i.input_id, i.source_key, i.enqueued_ms, i.body
    )
    insert into turn_input_evidence (sid, seq, input_id, source_key, state, enqueued_ms, settled_ms, body)
    select g.sid, g.seq, g.input_id, g.source_key, 'completed', g.enqueued_ms, now_ms, g.body from gone g;
    get diagnostics held = row_count;
    if held <> 1 then
        raise exception 'the claim is gone';
    end if;
    return turn;
end $$

/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* How programs tell user space what they did. */
#pragma once

#include "maps.h"

/* Events that wait before the reader is woken, in bytes. Set by the loader. */
const volatile __u32 event_wakeup_bytes = 65536;

/* Whether translated and redirected connections are told, not refusals only. Set at any time. */
volatile __u32 event_verdicts = 1;

/*
 * emit - hand an event to user space.
 *
 * Waking the reader costs more than all the rest of a connect, so only refusals do; the
 * reader looks by itself often enough for the others.
 */
static __noinline int emit(struct event *e)
{
	__u64 flags = BPF_RB_NO_WAKEUP;
	__u32 zero = 0;
	__u64 *count;

	if (!e)
		return 0;
	if (e->verdict != VERDICT_DROPPED && !event_verdicts)
		return 0;
	if (e->verdict == VERDICT_DROPPED ||
	    bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) > event_wakeup_bytes)
		flags = BPF_RB_FORCE_WAKEUP;
	e->time = bpf_ktime_get_ns();
	if (bpf_ringbuf_output(&events, e, sizeof(*e), flags) == 0)
		return 0;
	count = bpf_map_lookup_elem(&lost, &zero);
	if (count)
		(*count)++;
	return 0;
}

/* drop - the only way to refuse something: it records the reason and tells it. */
static __always_inline enum verdict drop(struct event *e, enum reason reason)
{
	e->verdict = VERDICT_DROPPED;
	e->reason = reason;
	emit(e);
	return VERDICT_DROPPED;
}

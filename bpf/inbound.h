/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Choosing the listening socket of a new connection: in a workload's namespace for what arrives
 * from outside, in the node's for Gateways' addresses.
 *
 * Fails closed: when the listener is gone, nobody else gets the connection, unless it is a
 * workload's that wants to be seen only: then the workload gets it.
 */
#pragma once

#include "include/address.h"
#include "include/event.h"

static __always_inline void lookup_local(union addr *a, struct bpf_sk_lookup *ctx)
{
	if (ctx_load(ctx, family) == AF_INET) {
		addr_from4(a, ctx_load(ctx, local_ip4));
		return;
	}
	a->word[0] = ctx_load(ctx, local_ip6[0]);
	a->word[1] = ctx_load(ctx, local_ip6[1]);
	a->word[2] = ctx_load(ctx, local_ip6[2]);
	a->word[3] = ctx_load(ctx, local_ip6[3]);
}

static __always_inline void lookup_remote(union addr *a, struct bpf_sk_lookup *ctx)
{
	if (ctx_load(ctx, family) == AF_INET) {
		addr_from4(a, ctx_load(ctx, remote_ip4));
		return;
	}
	a->word[0] = ctx_load(ctx, remote_ip6[0]);
	a->word[1] = ctx_load(ctx, remote_ip6[1]);
	a->word[2] = ctx_load(ctx, remote_ip6[2]);
	a->word[3] = ctx_load(ctx, remote_ip6[3]);
}

static __always_inline int nobody_takes(const struct tuple *t, __u8 protocol, enum hook hook,
					enum reason reason)
{
	struct event e = {};
	__u32 *index;

	e.source = t->remote;
	e.source_port = t->remote_port;
	e.original = t->local;
	e.original_port = t->local_port;
	e.hook = hook;
	e.family = addr_is4(&t->local) ? AF_INET : AF_INET6;
	e.protocol = protocol;
	index = bpf_map_lookup_elem(&addresses, &e.source);
	if (index)
		e.workload = *index;
	drop(&e, reason);
	return SK_DROP;
}

/* assign - hand the connection to the socket in the slot of a SOCKMAP; zero if it took it. */
#define assign(ctx, sockets, index)                                                          \
	({                                                                                   \
		__u32 slot_ = (index);                                                       \
		struct bpf_sock *sk_ = bpf_map_lookup_elem(&(sockets), &slot_);              \
		long error_ = -1;                                                            \
                                                                                             \
		if (sk_) {                                                                   \
			error_ = bpf_sk_assign(ctx, sk_, 0);                                 \
			bpf_sk_release(sk_);                                                 \
		}                                                                            \
		error_;                                                                      \
	})

SEC("sk_lookup") int inbound_pod(struct bpf_sk_lookup *ctx)
{
	struct frontend f = {};
	struct tuple t = {}, mirror = {};
	enum reason reason;
	__u32 *index;

	if (ctx_load(ctx, protocol) != IPPROTO_TCP)
		return SK_PASS;
	lookup_local(&f.addr, ctx);
	f.port = bpf_htons(ctx_load(ctx, local_port));
	f.protocol = IPPROTO_TCP;
	index = bpf_map_lookup_elem(&inbound, &f);
	if (!index)
		return SK_PASS;
	t.local = f.addr;
	t.local_port = f.port;
	lookup_remote(&t.remote, ctx);
	t.remote_port = ctx->remote_port;
	/* The node proxy's own connection to the workload, as its end of it saw the tuple. */
	mirror.local = t.remote;
	mirror.local_port = t.remote_port;
	mirror.remote = t.local;
	mirror.remote_port = t.local_port;
	if (bpf_map_lookup_elem(&own_tuples, &mirror))
		return SK_PASS;
	/* Processes hold the listener that do not accept from it. */
	if (!proxy_serves())
		reason = REASON_PROXY_UNAVAILABLE;
	else if (assign(ctx, inbound_sockets, *index & ~INBOUND_REQUIRED) != 0)
		reason = REASON_LISTENER_CLOSED;
	else
		return SK_PASS;
	if (*index & INBOUND_REQUIRED)
		return nobody_takes(&t, IPPROTO_TCP, HOOK_INBOUND, reason);
	return SK_PASS;
}

SEC("sk_lookup") int inbound_node(struct bpf_sk_lookup *ctx)
{
	struct frontend f = {};
	struct tuple t = {};
	__u32 *index;

	lookup_local(&f.addr, ctx);
	f.port = bpf_htons(ctx_load(ctx, local_port));
	f.protocol = ctx_load(ctx, protocol);
	index = bpf_map_lookup_elem(&gateways, &f);
	if (!index)
		return SK_PASS;
	t.local = f.addr;
	t.local_port = f.port;
	lookup_remote(&t.remote, ctx);
	t.remote_port = ctx->remote_port;
	if (assign(ctx, gateway_sockets, *index) != 0)
		return nobody_takes(&t, f.protocol, HOOK_GATEWAY, REASON_LISTENER_CLOSED);
	return SK_PASS;
}

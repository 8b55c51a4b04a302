/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Following connections from SYN to established: the original destination goes from the
 * client's socket by way of its tuple to the socket that the node proxy accepts.
 *
 * sockops_pod is attached to the workloads' cgroup and sees the client. sockops_node is attached
 * to the cgroup of the node's own processes and sees the accepted socket, because the kernel runs
 * PASSIVE_ESTABLISHED in the cgroup of whoever made the listener.
 */
#pragma once

#include "include/address.h"
#include "include/event.h"

static __always_inline void local_addr(union addr *a, struct bpf_sock_ops *ctx)
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

static __always_inline void remote_addr(union addr *a, struct bpf_sock_ops *ctx)
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

/* remote_port - in host byte order. */
static __always_inline __u32 remote_port(struct bpf_sock_ops *ctx)
{
	return bpf_ntohl(ctx_load(ctx, remote_port));
}

/* watch_state - have STATE_CB called for this socket. */
static __always_inline void watch_state(struct bpf_sock_ops *ctx)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx_load(ctx, bpf_sock_ops_cb_flags) |
					       BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void client_key(struct origin_key *key, struct bpf_sock_ops *ctx)
{
	key->netns_cookie = bpf_get_netns_cookie(ctx);
	local_addr(&key->client, ctx);
	key->client_port = ctx_load(ctx, local_port);
	key->listener_port = remote_port(ctx);
}

/* pod_connects - a workload's SYN is about to leave: its tuple is known now. */
static __always_inline void pod_connects(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct origin_key key = {};
	struct origin origin = {};
	struct event e = {};
	struct peer *p;

	if (!sk)
		return;
	p = bpf_sk_storage_get(&peers, sk, 0, 0);
	if (!p || !p->steered)
		return;
	client_key(&key, ctx);
	origin.addr = p->original;
	origin.port = p->original_port;
	origin.workload = p->workload;
	origin.cookie = bpf_get_socket_cookie(ctx);
	if (bpf_map_update_elem(&pending, &key, &origin, BPF_ANY) == 0) {
		/* Deletes the record if the connection fails. */
		watch_state(ctx);
		return;
	}
	/* The node proxy finds no record and refuses. */
	e.netns_cookie = key.netns_cookie;
	e.socket_cookie = origin.cookie;
	e.source = key.client;
	e.source_port = bpf_htons(key.client_port);
	e.original = origin.addr;
	e.original_port = origin.port;
	e.chosen = p->chosen;
	e.chosen_port = p->chosen_port;
	e.workload = origin.workload;
	e.hook = HOOK_SOCKOPS;
	e.family = addr_is4(&origin.addr) ? AF_INET : AF_INET6;
	e.protocol = IPPROTO_TCP;
	drop(&e, REASON_MAP_FULL);
}

/* pod_closes - a watched socket is gone; normally the proxy's socket has the record by now. */
static __always_inline void pod_closes(struct bpf_sock_ops *ctx)
{
	struct origin_key key = {};
	struct origin *o;

	client_key(&key, ctx);
	o = bpf_map_lookup_elem(&pending, &key);
	/* The tuple may be another socket's already. */
	if (o && o->cookie == bpf_get_socket_cookie(ctx))
		bpf_map_delete_elem(&pending, &key);
}

SEC("sockops") int sockops_pod(struct bpf_sock_ops *ctx)
{
	switch (ctx_load(ctx, op)) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		pod_connects(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx_load(ctx, args[1]) == BPF_TCP_CLOSE)
			pod_closes(ctx);
		break;
	}
	return 1;
}

/* node_accepts - the node proxy's socket is established: the record becomes its own. */
static __always_inline void node_accepts(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct origin_key key = {};
	struct origin *o, *own;

	if (!is_outbound_port(ctx_load(ctx, local_port)) || !sk)
		return;
	key.netns_cookie = bpf_get_netns_cookie(ctx);
	remote_addr(&key.client, ctx);
	key.client_port = remote_port(ctx);
	key.listener_port = ctx_load(ctx, local_port);
	o = bpf_map_lookup_elem(&pending, &key);
	if (!o)
		return;
	/* Without memory for it the node proxy finds no record and refuses. */
	own = bpf_sk_storage_get(&origins, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (own)
		*own = *o;
	bpf_map_delete_elem(&pending, &key);
}

static __always_inline bool own_tuple(struct tuple *t, struct bpf_sock_ops *ctx)
{
	struct frontend f = {};

	remote_addr(&f.addr, ctx);
	f.port = bpf_htons(remote_port(ctx));
	f.protocol = IPPROTO_TCP;
	if (!bpf_map_lookup_elem(&inbound, &f))
		return false;
	t->remote = f.addr;
	t->remote_port = f.port;
	local_addr(&t->local, ctx);
	t->local_port = bpf_htons(ctx_load(ctx, local_port));
	return true;
}

SEC("sockops") int sockops_node(struct bpf_sock_ops *ctx)
{
	struct tuple t = {};
	__u32 one = 1;

	switch (ctx_load(ctx, op)) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		if (own_tuple(&t, ctx)) {
			bpf_map_update_elem(&own_tuples, &t, &one, BPF_ANY);
			watch_state(ctx);
		}
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		node_accepts(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		/*
		 * Any change ends SYN_SENT: later packets find the socket, and the port may
		 * come to the workload that owns the address.
		 */
		if (own_tuple(&t, ctx))
			bpf_map_delete_elem(&own_tuples, &t);
		break;
	}
	return 1;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Workloads' sockets: service balancing, steering into the node proxy, and showing to the
 * application the addresses that it dialled. Attached to the cgroup of all workloads.
 *
 * Fails closed: what is not understood to be a workload opens no connection.
 * EPERM means "not allowed", ECONNREFUSED "nobody serves this now".
 */
#pragma once

#include "datagram.h"
#include "include/service.h"

/* A socket call while it is decided. */
struct call {
	struct frontend dialled;
	struct event event;
	struct choice choice;
	int error; /* for the application, when dropped */
};

/* Whether the kernel knows MPTCP, without which it refuses the helper for it. Set by the loader. */
const volatile __u32 have_mptcp = 1;

/* The node proxy counts as gone when its heartbeat is older than this. */
#define HEARTBEAT_TIMEOUT_NS 3000000000ULL

static __always_inline bool proxy_serves(void)
{
	__u32 zero = 0;
	__u64 *beat = bpf_map_lookup_elem(&heartbeat, &zero);
	__u64 last;

	if (!beat)
		return false;
	last = load_fresh(*beat);
	/* Signed: the beat may be later than the moment that this CPU read. */
	return last && (__s64)(bpf_ktime_get_ns() - last) < (__s64)HEARTBEAT_TIMEOUT_NS;
}

static __always_inline enum verdict refuse(struct call *c, enum reason reason, int error)
{
	c->error = error;
	return drop(&c->event, reason);
}

/* outbound_port - one of the ports that take steered connections: any, and the same for a socket. */
static __always_inline __be16 outbound_port(__u64 socket_cookie)
{
	return bpf_htons(PORT_OUTBOUND +
			 scatter(socket_cookie, 0) % (PORT_OUTBOUND_LAST - PORT_OUTBOUND + 1));
}

/* call_init - describe the call; the destination was put into c->dialled by the caller. */
static __always_inline void call_init(struct call *c, struct bpf_sock_addr *ctx, enum hook hook)
{
	struct bpf_sock *sk = ctx->sk;

	c->dialled.port = ctx_load(ctx, user_port);
	c->dialled.protocol = ctx_load(ctx, protocol);
	c->event.netns_cookie = bpf_get_netns_cookie(ctx);
	c->event.socket_cookie = bpf_get_socket_cookie(ctx);
	c->event.original = c->dialled.addr;
	c->event.original_port = c->dialled.port;
	c->event.hook = hook;
	c->event.protocol = c->dialled.protocol;
	c->event.family = addr_is4(&c->dialled.addr) ? AF_INET : AF_INET6;
	if (sk)
		c->event.source_port = bpf_htons(ctx_load(sk, src_port));
}

/*
 * decide - what becomes of a call to c->dialled.
 *
 * FORWARDED: it is no service, leave it alone. TRANSLATED or REDIRECTED: c->choice is
 * where it goes instead. DROPPED: c->error, and the event was told.
 */
static __always_inline enum verdict decide(struct call *c, const struct kept *kept)
{
	struct workload *w = bpf_map_lookup_elem(&workloads, &c->event.netns_cookie);
	bool is4 = addr_is4(&c->dialled.addr);
	__u32 index;

	/* A namespace made inside a workload, or none of ours: its identity is unknown. */
	if (!w)
		return refuse(c, REASON_FOREIGN_NAMESPACE, EPERM);
	index = w->index;
	c->event.workload = index;
	c->event.source = is4 ? w->addr4 : w->addr6;
	if (c->dialled.protocol != IPPROTO_TCP && c->dialled.protocol != IPPROTO_UDP)
		return VERDICT_FORWARDED;
	if (is_capture_port(c->dialled.port) &&
	    (addr_is_here(&c->dialled.addr) ||
	     bpf_map_lookup_elem(&addresses, &c->dialled.addr) ||
	     bpf_map_lookup_elem(&mesh_addresses, &c->dialled.addr)))
		return refuse(c, REASON_CAPTURE_PORT, EPERM);

	switch (service_choose(&c->dialled, c->event.netns_cookie, c->event.socket_cookie, kept,
			       &c->choice)) {
	case LOOKUP_NONE:
		return VERDICT_FORWARDED;
	case LOOKUP_EMPTY:
		c->event.service = c->choice.service;
		return refuse(c,
			      c->choice.flags & SERVICE_LOCAL ? REASON_NO_LOCAL_ENDPOINT :
								REASON_NO_ENDPOINT,
			      ECONNREFUSED);
	case LOOKUP_FOUND:
		c->event.service = c->choice.service;
		c->event.verdict = VERDICT_TRANSLATED;
		break;
	case LOOKUP_PROXY:
		c->event.service = c->choice.service;
		c->event.verdict = VERDICT_REDIRECTED;
		c->choice.addr = c->event.source;
		c->choice.port = (c->choice.flags & SERVICE_DNS)
					 ? bpf_htons(PORT_DNS)
					 : outbound_port(c->event.socket_cookie);
		/* A workload without an address of the family has no listener there. */
		if (addr_is_zero(&c->choice.addr) || !proxy_serves())
			return refuse(c, REASON_PROXY_UNAVAILABLE, ECONNREFUSED);
		break;
	}
	c->event.chosen = c->choice.addr;
	c->event.chosen_port = c->choice.port;
	return c->event.verdict;
}

/*
 * connect_call - connect() of TCP and UDP sockets.
 *
 * What is chosen is noted for the socket: sockops makes the proxy's record of it, and
 * getpeername and recvmsg show the original by it. A destination that is not
 * steered takes an old note away, so that none can be carried to another connection.
 */
static __always_inline enum verdict connect_call(struct call *c, struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mptcp_sock *whole;
	enum verdict verdict;
	struct peer *p, note = {};
	bool tcp;

	if (!sk)
		return refuse(c, REASON_MAP_FULL, ENOBUFS);
	call_init(c, ctx, HOOK_CONNECT);
	tcp = c->dialled.protocol == IPPROTO_TCP;
	whole = tcp && have_mptcp ? bpf_skc_to_mptcp_sock(sk) : 0;
	verdict = decide(c, 0);
	if (verdict == VERDICT_DROPPED || verdict == VERDICT_FORWARDED) {
		bpf_sk_storage_delete(&peers, sk);
		if (whole)
			bpf_sk_storage_delete(&peers, whole);
		/* Looking takes no lock, and there is hardly ever one. */
		if (tcp && bpf_map_lookup_elem(&translated, &c->event.socket_cookie))
			bpf_map_delete_elem(&translated, &c->event.socket_cookie);
		return verdict;
	}
	note.original = c->dialled.addr;
	note.original_port = c->dialled.port;
	note.chosen = c->choice.addr;
	note.chosen_port = c->choice.port;
	note.workload = c->event.workload;
	/*
	 * The hook sees the first subflow of MPTCP; getpeername sees the socket that the
	 * application has.
	 */
	if (whole) {
		p = bpf_sk_storage_get(&peers, whole, &note, BPF_SK_STORAGE_GET_F_CREATE);
		if (p)
			*p = note;
	}
	if (tcp && verdict == VERDICT_TRANSLATED) {
		bpf_sk_storage_delete(&peers, sk);
		/* sock_release does not see subflows: a note in this map would outlive them. */
		if (!whole)
			bpf_map_update_elem(&translated, &c->event.socket_cookie, &note, BPF_ANY);
		emit(&c->event);
		return verdict;
	}
	note.steered = tcp && !(c->choice.flags & SERVICE_DNS);
	p = bpf_sk_storage_get(&peers, sk, &note, BPF_SK_STORAGE_GET_F_CREATE);
	if (p)
		*p = note; /* it may have been there */
	else if (verdict == VERDICT_REDIRECTED)
		/* Unnoted, the node proxy could not tell where it was going. */
		return refuse(c, REASON_MAP_FULL, ENOBUFS);
	emit(&c->event);
	return verdict;
}

/* sendmsg_call - sendto() and sendmsg() with an address, on UDP sockets. */
static __always_inline enum verdict sendmsg_call(struct call *c, struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct datagram_key key;
	struct kept kept = {};
	struct datagram *d;
	enum verdict verdict;
	bool shown = false;
	struct peer *p;

	if (!sk)
		return refuse(c, REASON_MAP_FULL, ENOBUFS);
	call_init(c, ctx, HOOK_SENDMSG);
	/*
	 * send() on an IPv6 socket that is connected to a mapped address comes here, with the
	 * address that connect chose.
	 */
	p = bpf_sk_storage_get(&peers, sk, 0, 0);
	if (p && p->chosen_port == c->dialled.port && addr_equal(&p->chosen, &c->dialled.addr)) {
		if (ctx_load(sk, state) == BPF_TCP_ESTABLISHED)
			return VERDICT_FORWARDED;
		/* It was connected once; the note would name the replies wrongly. */
		bpf_sk_storage_delete(&peers, sk);
	}
	datagram_key(&key, c->event.socket_cookie, &c->dialled.addr, c->dialled.port);
	d = bpf_map_lookup_elem(&datagrams, &key);
	if (d)
		shown = kept_load(d, &kept);
	verdict = decide(c, &kept);
	if (verdict == VERDICT_DROPPED)
		return verdict;
	if (verdict == VERDICT_FORWARDED) {
		if (bpf_sk_storage_get(&datagram_lists, sk, 0, 0))
			name_take(key.cookie, &c->dialled.addr, c->dialled.port);
		return verdict;
	}
	/* Each datagram comes here; only one that begins or changes something is news. */
	if (shown && kept.port == c->choice.port && addr_equal(&kept.addr, &c->choice.addr) &&
	    kept.generation == c->choice.generation)
		return verdict;
	if (!d)
		d = datagram_add(&key, sk);
	if (!d)
		return refuse(c, REASON_MAP_FULL, ENOBUFS);
	if (shown && (kept.port != c->choice.port || !addr_equal(&kept.addr, &c->choice.addr)))
		name_take(key.cookie, &kept.addr, kept.port);
	kept.addr = c->choice.addr;
	kept.port = c->choice.port;
	kept.service = c->choice.service;
	kept.generation = c->choice.generation;
	shown = name_give(key.cookie, &kept, &c->dialled);
	kept_store(d, &kept, shown);
	/* The socket's owner would take the replies for a stranger's. */
	if (!shown)
		return refuse(c, REASON_MAP_FULL, ENOBUFS);
	emit(&c->event);
	return verdict;
}

/*
 * original_of - what the socket's owner dialled to reach a peer; false: that very peer.
 * @seen: the peer's address on the wire, replaced by the original.
 */
static __always_inline bool original_of(struct bpf_sock_addr *ctx, union addr *seen, __be16 *port)
{
	struct bpf_sock *sk = ctx->sk;
	__u32 protocol = ctx_load(ctx, protocol);
	struct peer *p;
	__u64 cookie;

	if (!sk)
		return false;
	p = bpf_sk_storage_get(&peers, sk, 0, 0);
	if (!p && protocol == IPPROTO_TCP) {
		cookie = bpf_get_socket_cookie(ctx);
		p = bpf_map_lookup_elem(&translated, &cookie);
	}
	/* A UDP socket that was disconnected (AF_UNSPEC) has its note still. */
	if (protocol == IPPROTO_UDP && ctx_load(sk, state) != BPF_TCP_ESTABLISHED)
		p = 0;
	if (p && p->chosen_port == *port && addr_equal(&p->chosen, seen)) {
		*seen = p->original;
		*port = p->original_port;
		return true;
	}
	if (protocol != IPPROTO_UDP || !bpf_sk_storage_get(&datagram_lists, sk, 0, 0))
		return false;
	return name_load(bpf_get_socket_cookie(ctx), seen, port);
}

static __always_inline void load4(union addr *a, struct bpf_sock_addr *ctx)
{
	addr_from4(a, ctx_load(ctx, user_ip4));
}

static __always_inline void load6(union addr *a, struct bpf_sock_addr *ctx)
{
	a->word[0] = ctx_load(ctx, user_ip6[0]);
	a->word[1] = ctx_load(ctx, user_ip6[1]);
	a->word[2] = ctx_load(ctx, user_ip6[2]);
	a->word[3] = ctx_load(ctx, user_ip6[3]);
}

static __always_inline void store4(struct bpf_sock_addr *ctx, const union addr *a, __be16 port)
{
	ctx_store(ctx, user_ip4, a->word[3]);
	ctx_store(ctx, user_port, (__u32)port);
}

static __always_inline void store6(struct bpf_sock_addr *ctx, const union addr *a, __be16 port)
{
	ctx_store(ctx, user_ip6[0], a->word[0]);
	ctx_store(ctx, user_ip6[1], a->word[1]);
	ctx_store(ctx, user_ip6[2], a->word[2]);
	ctx_store(ctx, user_ip6[3], a->word[3]);
	ctx_store(ctx, user_port, (__u32)port);
}

/* finish - a program's return value; the kernel's own error for 0 would be EPERM. */
static __always_inline int finish(enum verdict verdict, int error)
{
	if (verdict != VERDICT_DROPPED)
		return 1;
	bpf_set_retval(-error);
	return 0;
}

#define CALL_PROGRAM(name, call_fn, family)                                                  \
	int name(struct bpf_sock_addr *ctx)                                                  \
	{                                                                                    \
		struct call c = {};                                                          \
		enum verdict verdict;                                                        \
                                                                                             \
		load##family(&c.dialled.addr, ctx);                                          \
		verdict = call_fn(&c, ctx);                                                  \
		if (verdict == VERDICT_TRANSLATED || verdict == VERDICT_REDIRECTED)          \
			store##family(ctx, &c.choice.addr, c.choice.port);                   \
		return finish(verdict, c.error);                                             \
	}

SEC("cgroup/connect4") CALL_PROGRAM(connect4, connect_call, 4)
SEC("cgroup/connect6") CALL_PROGRAM(connect6, connect_call, 6)
SEC("cgroup/sendmsg4") CALL_PROGRAM(sendmsg4, sendmsg_call, 4)
SEC("cgroup/sendmsg6") CALL_PROGRAM(sendmsg6, sendmsg_call, 6)

#define ORIGINAL_PROGRAM(name, family)                                                       \
	int name(struct bpf_sock_addr *ctx)                                                  \
	{                                                                                    \
		__be16 port = ctx_load(ctx, user_port);                                      \
		union addr addr;                                                             \
                                                                                             \
		load##family(&addr, ctx);                                                    \
		if (original_of(ctx, &addr, &port))                                     \
			store##family(ctx, &addr, port);                                     \
		return 1;                                                                    \
	}

SEC("cgroup/recvmsg4") ORIGINAL_PROGRAM(recvmsg4, 4)
SEC("cgroup/recvmsg6") ORIGINAL_PROGRAM(recvmsg6, 6)
SEC("cgroup/getpeername4") ORIGINAL_PROGRAM(getpeername4, 4)
SEC("cgroup/getpeername6") ORIGINAL_PROGRAM(getpeername6, 6)

/* bind_call - bind(); the node proxy's ports are taken, whoever holds them at the moment. */
static __always_inline int bind_call(struct bpf_sock *ctx, const union addr *addr)
{
	__be16 port = bpf_htons(ctx_load(ctx, src_port));
	struct event e = {};
	struct workload *w;

	if (!is_capture_port(port))
		return 1;
	e.netns_cookie = bpf_get_netns_cookie(ctx);
	e.socket_cookie = bpf_get_socket_cookie(ctx);
	e.source = *addr;
	e.source_port = port;
	e.original = *addr;
	e.original_port = port;
	e.hook = HOOK_BIND;
	e.family = addr_is4(addr) ? AF_INET : AF_INET6;
	e.protocol = ctx_load(ctx, protocol);
	w = bpf_map_lookup_elem(&workloads, &e.netns_cookie);
	if (w)
		e.workload = w->index;
	return finish(drop(&e, REASON_BIND_RESERVED), EADDRINUSE);
}

SEC("cgroup/post_bind4") int post_bind4(struct bpf_sock *ctx)
{
	union addr addr;

	addr_from4(&addr, ctx_load(ctx, src_ip4));
	return bind_call(ctx, &addr);
}

SEC("cgroup/post_bind6") int post_bind6(struct bpf_sock *ctx)
{
	union addr addr;

	addr.word[0] = ctx_load(ctx, src_ip6[0]);
	addr.word[1] = ctx_load(ctx, src_ip6[1]);
	addr.word[2] = ctx_load(ctx, src_ip6[2]);
	addr.word[3] = ctx_load(ctx, src_ip6[3]);
	return bind_call(ctx, &addr);
}

/* What is noted of a socket by its cookie goes with it. */
SEC("cgroup/sock_release") int sock_release(struct bpf_sock *ctx)
{
	__u64 cookie;

	switch (ctx_load(ctx, protocol)) {
	case IPPROTO_TCP:
		cookie = bpf_get_socket_cookie(ctx);
		bpf_map_delete_elem(&translated, &cookie);
		break;
	case IPPROTO_UDP:
		datagrams_release(ctx);
		break;
	}
	return 1;
}

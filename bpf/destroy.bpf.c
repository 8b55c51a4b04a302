//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Ending the sockets whose endpoint is gone (Linux 6.5: bpf_sock_destroy). Iterators over the
 * sockets of one network namespace; the reader gets a struct ended for each that was ended.
 *
 * A socket is ended only if connect translated its destination, for the very service
 * that lost the endpoint: who dialled the endpoint itself is left alone.
 */

#include "include/address.h"
#include "include/peers.h"

#define kernel_type __attribute__((preserve_access_index))

/* Of the kernel's types only what is used; the loader finds the fields by name. */
struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
} kernel_type;

struct sock_common {
	__be32 skc_daddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
} kernel_type;

struct seq_file;
struct udp_sock;

struct bpf_iter_meta {
	struct seq_file *seq;
} kernel_type;

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} kernel_type;

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
} kernel_type;

enum {
	TCP_TIME_WAIT = 6,
	TCP_LISTEN = 10,
	TCP_NEW_SYN_RECV = 12,
};

extern int bpf_sock_destroy(struct sock_common *sk) __ksym;

/* Whose sockets are to be ended; the value means nothing. Written by destroy. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct victim);
	__type(value, __u32);
} victims SEC(".maps");

/* end - end a socket if what was noted of it is a victim's, and still true. */
static __always_inline void end(struct seq_file *seq, struct sock_common *sk, const struct peer *note,
				__u32 protocol)
{
	struct ended e = {};
	union addr remote;

	e.victim.original = note->original;
	e.victim.chosen = note->chosen;
	e.victim.original_port = note->original_port;
	e.victim.chosen_port = note->chosen_port;
	e.victim.protocol = protocol;
	if (!bpf_map_lookup_elem(&victims, &e.victim))
		return;
	if (sk->skc_family == AF_INET) {
		addr_from4(&remote, sk->skc_daddr);
	} else {
		remote.word[0] = sk->skc_v6_daddr.in6_u.u6_addr32[0];
		remote.word[1] = sk->skc_v6_daddr.in6_u.u6_addr32[1];
		remote.word[2] = sk->skc_v6_daddr.in6_u.u6_addr32[2];
		remote.word[3] = sk->skc_v6_daddr.in6_u.u6_addr32[3];
	}
	if (sk->skc_dport != note->chosen_port || !addr_equal(&remote, &note->chosen))
		return;
	e.workload = note->workload;
	e.source_port = bpf_htons(sk->skc_num);
	e.family = sk->skc_family;
	if (bpf_sock_destroy(sk) == 0)
		bpf_seq_write(seq, &e, sizeof(e));
}

SEC("iter/tcp") int destroy_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	struct peer *note;
	__u64 cookie;

	if (!sk || sk->skc_state == TCP_TIME_WAIT || sk->skc_state == TCP_LISTEN ||
	    sk->skc_state == TCP_NEW_SYN_RECV)
		return 0;
	cookie = bpf_get_socket_cookie(sk);
	note = bpf_map_lookup_elem(&translated, &cookie);
	if (note)
		end(ctx->meta->seq, sk, note, IPPROTO_TCP);
	return 0;
}

SEC("iter/udp") int destroy_udp(struct bpf_iter__udp *ctx)
{
	struct sock_common *sk = (struct sock_common *)ctx->udp_sk;
	struct peer *note;

	if (!sk || sk->skc_state != BPF_TCP_ESTABLISHED)
		return 0;
	note = bpf_sk_storage_get(&peers, ctx->udp_sk, 0, 0);
	if (note)
		end(ctx->meta->seq, sk, note, IPPROTO_UDP);
	return 0;
}

/* Types that no map names, so that the generator finds them. */
const struct {
	struct ended ended;
} destroy_types = {};

char _license[] SEC("license") = "GPL";

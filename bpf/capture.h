/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * The node proxy's own listening sockets in a workload's namespace: what comes from another
 * namespace never reaches them. A steered connection stays in its workload's namespace.
 */
#pragma once

#include "include/address.h"
#include "include/event.h"

/* The loopback device of every namespace (LOOPBACK_IFINDEX in net/net_namespace.h). */
#define IFINDEX_LOOPBACK 1

/* Where the addresses are in the headers of IPv4 (RFC 791 §3.1) and IPv6 (RFC 8200 §3). */
enum {
	IPV4_SOURCE = 12,
	IPV6_SOURCE = 8,
};

static __always_inline int from_elsewhere(struct __sk_buff *skb, __u8 protocol)
{
	struct event e = {};
	struct {
		__be32 source, destination;
	} ip4 = {};
	struct {
		union addr source, destination;
	} ip6 = {};
	struct {
		__be16 source, destination;
	} ports = {};
	__u8 version = 0;

	/* What cannot be read stays zero in the event, and is dropped like the rest. */
	bpf_skb_load_bytes_relative(skb, 0, &version, sizeof(version), BPF_HDR_START_NET);
	if (version >> 4 == 4) {
		bpf_skb_load_bytes_relative(skb, IPV4_SOURCE, &ip4, sizeof(ip4), BPF_HDR_START_NET);
		addr_from4(&e.source, ip4.source);
		addr_from4(&e.original, ip4.destination);
		e.family = AF_INET;
	} else {
		bpf_skb_load_bytes_relative(skb, IPV6_SOURCE, &ip6, sizeof(ip6), BPF_HDR_START_NET);
		e.source = ip6.source;
		e.original = ip6.destination;
		e.family = AF_INET6;
	}
	/* A socket's filter sees TCP and UDP from their headers on. */
	bpf_skb_load_bytes(skb, 0, &ports, sizeof(ports));
	e.source_port = ports.source;
	e.original_port = ports.destination;
	e.hook = HOOK_CAPTURE;
	e.protocol = protocol;
	drop(&e, REASON_CAPTURE_PORT);
	return 0;
}

/* A filter returns how many bytes of the packet the socket takes. */
#define CAPTURE_PROGRAM(name, protocol)                                                 \
	int name(struct __sk_buff *skb)                                                 \
	{                                                                               \
		if (ctx_load(skb, ifindex) == IFINDEX_LOOPBACK)                         \
			return -1;                                                      \
		return from_elsewhere(skb, protocol);                                   \
	}

SEC("socket") CAPTURE_PROGRAM(capture_tcp, IPPROTO_TCP)
SEC("socket") CAPTURE_PROGRAM(capture_udp, IPPROTO_UDP)

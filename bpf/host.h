/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * What workloads send, at the node's ends of their veth pairs (tcx ingress).
 *
 * A packet whose source is not the workload's own is dropped, whatever made it: raw and
 * packet sockets never meet the socket programs. What goes to another workload of this
 * node is put straight into its namespace, which saves the node's routing, the second
 * veth pair and a second softirq. All else is the stack's.
 *
 * Fails closed: an interface of which nothing is known sends nothing.
 */
#pragma once

#include "include/address.h"
#include "include/event.h"

struct ethhdr {
	__u16 dest[3];
	__u16 source[3];
	__be16 type;
};

struct arp {
	__be16 hardware, protocol;
	__u8 hardware_len, protocol_len;
	__be16 operation;
	__u16 sender_mac[3];
	__u16 sender[2];
	__u16 target_mac[3];
	__u16 target[2];
};

struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_len;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 source;
	__be32 dest;
};

struct ip6hdr {
	__u8 version;
	__u8 traffic[3];
	__be16 payload_len;
	__u8 next_header;
	__u8 hop_limit;
	union addr source;
	union addr dest;
};

#define ETH_LEN 14
/* The longest headers that are looked at: those of IPv6. */
#define HEADERS_LEN (ETH_LEN + 40)

/* Whether packets to workloads of this node bypass its stack. Set at any time. */
volatile __u32 redirect_peer = 1;

/* An interface tells of its drops at most so often; each is counted. */
#define TELL_EVERY_NS 100000000ULL

static __always_inline void count_packet(__u32 what)
{
	__u64 *count = bpf_map_lookup_elem(&packets, &what);

	if (count)
		(*count)++;
}

static __always_inline int shoot(struct interface *from, struct event *e, enum reason reason)
{
	__u64 now = bpf_ktime_get_ns();

	count_packet(reason == REASON_UNEXPECTED_FRAME ? PACKET_UNEXPECTED : PACKET_SPOOFED);
	if (now - from->told < TELL_EVERY_NS)
		return TC_ACT_SHOT;
	from->told = now;
	e->workload = from->workload;
	e->hook = HOOK_HOST;
	drop(e, reason);
	return TC_ACT_SHOT;
}

static __always_inline int to_stack(void)
{
	count_packet(PACKET_STACK);
	return TC_ACT_UNSPEC;
}

static __always_inline bool same_mac(const __u16 *a, const __u8 *b)
{
	const __u16 *c = (const __u16 *)b;

	return !((a[0] ^ c[0]) | (a[1] ^ c[1]) | (a[2] ^ c[2]));
}

/* find_neighbour - the workload that a packet may be handed to, or NULL. */
static __always_inline struct neighbour *find_neighbour(struct __sk_buff *ctx, const union addr *dest)
{
	struct neighbour *n;

	if (!redirect_peer)
		return 0;
	n = bpf_map_lookup_elem(&neighbours, dest);
	return n && n->ifindex != ctx_load(ctx, ifindex) ? n : 0;
}

/* readdress - the hardware addresses that the stack would have given the packet. */
static __always_inline void readdress(struct ethhdr *eth, const struct neighbour *n)
{
	const __u16 *mac = (const __u16 *)n->mac, *host = (const __u16 *)n->host_mac;

	eth->dest[0] = mac[0];
	eth->dest[1] = mac[1];
	eth->dest[2] = mac[2];
	eth->source[0] = host[0];
	eth->source[1] = host[1];
	eth->source[2] = host[2];
}

static __always_inline int host_ip4(struct __sk_buff *ctx, struct interface *from, struct ethhdr *eth,
				    void *end, struct event *e)
{
	struct iphdr *ip = (void *)eth + ETH_LEN;
	struct neighbour *to;
	__u32 check;

	if ((void *)(ip + 1) > end || ip->version_ihl >> 4 != 4)
		return shoot(from, e, REASON_UNEXPECTED_FRAME);
	addr_from4(&e->source, ip->source);
	addr_from4(&e->original, ip->dest);
	e->family = AF_INET;
	e->protocol = ip->protocol;
	if (!addr_equal(&e->source, &from->addr4))
		return shoot(from, e, REASON_SPOOFED_SOURCE);
	/* Options, and the answer to a packet at its last hop, are for the stack. */
	if (ip->version_ihl != 0x45 || ip->ttl <= 1)
		return to_stack();
	to = find_neighbour(ctx, &e->original);
	if (!to)
		return to_stack();
	readdress(eth, to);
	/* As ip_decrease_ttl does; RFC 1624. */
	check = ip->check;
	check += bpf_htons(0x0100);
	ip->check = check + (check >= 0xffff);
	ip->ttl--;
	count_packet(PACKET_REDIRECTED);
	return bpf_redirect_peer(to->ifindex, 0);
}

/* is_link_local - fe80::/10. */
static __always_inline bool is_link_local(const union addr *a)
{
	return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/*
 * stays_on_link - whether a packet is of those that no router forwards (RFC 4291 §2.5.6, §2.7):
 * neighbour and router discovery, duplicate address detection from the unspecified address,
 * multicast listener reports. Any address of the link may send them, but fe80::1, by which
 * workloads know the node.
 */
static __always_inline bool stays_on_link(const union addr *source, const union addr *dest)
{
	bool multicast = (dest->word[0] & bpf_htonl(0xffff0000)) == bpf_htonl(0xff020000);

	if (addr_is_zero(source))
		return multicast;
	if (source->word[0] == bpf_htonl(0xfe800000) && !source->word[1] && !source->word[2] &&
	    source->word[3] == bpf_htonl(1))
		return false;
	return is_link_local(source) && (multicast || is_link_local(dest));
}

static __always_inline int host_ip6(struct __sk_buff *ctx, struct interface *from, struct ethhdr *eth,
				    void *end, struct event *e)
{
	struct ip6hdr *ip = (void *)eth + ETH_LEN;
	struct neighbour *to;
	__u8 hop_limit;

	if ((void *)(ip + 1) > end || ip->version >> 4 != 6)
		return shoot(from, e, REASON_UNEXPECTED_FRAME);
	e->source = ip->source;
	e->original = ip->dest;
	e->family = AF_INET6;
	e->protocol = ip->next_header;
	/* No IPv4 address is written so on the wire, and an absent one is zero. */
	if (addr_is_zero(&e->source) || !addr_equal(&e->source, &from->addr6)) {
		if (stays_on_link(&e->source, &e->original))
			return to_stack();
		return shoot(from, e, REASON_SPOOFED_SOURCE);
	}
	/* Hop-by-hop options (0) are for the stack as well, and an IPv4 address is no destination. */
	hop_limit = ip->hop_limit;
	if (hop_limit <= 1 || ip->next_header == 0 || addr_is4(&e->original))
		return to_stack();
	to = find_neighbour(ctx, &e->original);
	if (!to)
		return to_stack();
	readdress(eth, to);
	/* No checksum of the header makes up for it: a sum over the packet has to change. */
	hop_limit--;
	bpf_skb_store_bytes(ctx, ETH_LEN + __builtin_offsetof(struct ip6hdr, hop_limit), &hop_limit,
			    1, BPF_F_RECOMPUTE_CSUM);
	count_packet(PACKET_REDIRECTED);
	return bpf_redirect_peer(to->ifindex, 0);
}

/* host_arp - workloads need none, but people ask by it: about others only in their own name. */
static __always_inline int host_arp(struct interface *from, struct ethhdr *eth, void *end,
				    struct event *e)
{
	struct arp *arp = (void *)eth + ETH_LEN;

	if ((void *)(arp + 1) > end || arp->hardware_len != 6 || arp->protocol_len != 4)
		return shoot(from, e, REASON_UNEXPECTED_FRAME);
	e->family = AF_INET;
	addr_from4(&e->source, arp->sender[0] | (__u32)arp->sender[1] << 16);
	addr_from4(&e->original, arp->target[0] | (__u32)arp->target[1] << 16);
	/* Zero is a probe (RFC 5227 §1.1). */
	if (!same_mac(arp->sender_mac, from->mac) ||
	    (e->source.word[3] && !addr_equal(&e->source, &from->addr4)))
		return shoot(from, e, REASON_SPOOFED_SOURCE);
	return to_stack();
}

SEC("tc") int host_ingress(struct __sk_buff *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 ifindex = ctx->ifindex, len = ctx->len;
	struct event e = {};
	struct interface *from;
	struct ethhdr *eth;

	from = bpf_map_lookup_elem(&interfaces, &ifindex);
	if (!from) {
		count_packet(PACKET_SPOOFED);
		return TC_ACT_SHOT;
	}
	/* Packet sockets may leave the headers outside the linear part. */
	if (data + HEADERS_LEN > end && len > (__u32)(end - data)) {
		bpf_skb_pull_data(ctx, len < HEADERS_LEN ? len : HEADERS_LEN);
		data = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
	}
	eth = data;
	if ((void *)(eth + 1) > end || ctx->vlan_present)
		return shoot(from, &e, REASON_UNEXPECTED_FRAME);
	if (!same_mac(eth->source, from->mac))
		return shoot(from, &e, REASON_SPOOFED_SOURCE);
	switch (eth->type) {
	case bpf_htons(ETH_P_IP):
		return host_ip4(ctx, from, eth, end, &e);
	case bpf_htons(ETH_P_IPV6):
		return host_ip6(ctx, from, eth, end, &e);
	case bpf_htons(ETH_P_ARP):
		return host_arp(from, eth, end, &e);
	}
	return shoot(from, &e, REASON_UNEXPECTED_FRAME);
}

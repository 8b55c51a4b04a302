/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* The values that programs and user space share. Go's types are generated from these. */
#pragma once

#include "kernel.h"
#include "reason.h"

/*
 * Ports of the node proxy in each workload's namespace. Steered connections all go from a
 * workload's address to itself: with one port for them there could be as many as it has
 * ephemeral ports, 28,232 by default (ip_local_port_range), and with several as many for each.
 */
enum capture_port {
	PORT_OUTBOUND = 15001,
	PORT_OUTBOUND_LAST = 15004,
	PORT_INBOUND = 15006,
	PORT_TUNNEL = 15008,
	PORT_DNS = 15053,
};

/* What was decided; the numbers are those of flow.Verdict. */
enum verdict {
	VERDICT_FORWARDED = 1,
	VERDICT_DROPPED = 2,
	VERDICT_REDIRECTED = 5,
	VERDICT_TRANSLATED = 7,
};

/* Where an event was seen. */
enum hook {
	HOOK_CONNECT = 1,
	HOOK_SENDMSG = 2,
	HOOK_BIND = 3,
	HOOK_SOCKOPS = 4,
	HOOK_INBOUND = 5,
	HOOK_GATEWAY = 6,
	HOOK_HOST = 7,
	HOOK_CAPTURE = 8,
};

/* An IPv6 address, or an IPv4 address in its mapped form ::ffff:a.b.c.d. */
union addr {
	__u8 bytes[16];
	__be32 word[4];
};

/* What a client dials. */
struct frontend {
	union addr addr;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

/* A workload of this node. An absent address is zero. */
struct workload {
	__u32 index;
	__u32 pad;
	union addr addr4;
	union addr addr6;
};

enum service_flags {
	SERVICE_STEERED = 1 << 0,  /* TCP goes to the node proxy */
	SERVICE_AFFINITY = 1 << 1, /* a client keeps its endpoint */
	SERVICE_DNS = 1 << 2,      /* answered by the node proxy's DNS server */
	SERVICE_LOCAL = 1 << 3,    /* has endpoints, but of other nodes, which its policy rules out */
};

/* What an endpoint is to its service. */
enum membership {
	MEMBER_NONE = 0,
	MEMBER_USED = 1,     /* gets new flows */
	MEMBER_DRAINING = 2, /* keeps those that it has */
};

/*
 * A frontend's endpoints are endpoints[{id, generation, 0..count-1}]. A change of
 * them writes a new generation, then this value, then deletes the old one.
 * self repeats the key: an element that was freed and used again while a program read
 * it shows itself by that.
 */
struct service {
	__u32 id;
	__u32 generation;
	__u32 count;
	__u32 flags;
	__u32 affinity_seconds;
	struct frontend self;
};

struct endpoint_key {
	__u32 service;
	__u32 generation;
	__u32 slot;
};

/* service and generation repeat the key, as service.self does. */
struct endpoint {
	union addr addr;
	__be16 port;
	__u16 pad;
	__u32 service;
	__u32 generation;
};

/* Whether an address is an endpoint of a service, by the service's id. */
struct member_key {
	union addr addr;
	__be16 port;
	__u16 pad;
	__u32 service;
};

struct affinity_key {
	__u64 netns_cookie;
	__u32 service;
	__u32 pad;
};

struct affinity {
	__u64 used; /* ktime */
	union addr addr;
	__be16 port;
	__u16 pad;
	__u32 pad2;
};

/* What a connected socket's owner dialled, and what it got. */
struct peer {
	union addr original;
	union addr chosen;
	__be16 original_port;
	__be16 chosen_port;
	__u32 workload;
	__u32 steered;
};

/* An address and port. A port of zero means none. */
struct place {
	union addr addr;
	__be16 port;
	__u16 pad;
};

/* The endpoint that an unconnected socket has of a service. A port of zero means none. */
struct kept {
	union addr addr;
	__be16 port;
	__u16 pad;
	__u32 service;
	__u32 generation;
};

/* A UDP socket, by its cookie, and a peer of it. */
struct datagram_key {
	__u64 cookie;
	struct place at;
	__u32 pad;
};

/* A service that an unconnected socket sends to. */
struct datagram {
	struct bpf_spin_lock lock; /* guards all but next */
	struct kept kept;
	__u32 shown;	   /* datagram_names shows the endpoint's replies as the service's */
	struct place next; /* the service that the socket sent to first after this one */
};

/* What the replies of an endpoint stand for. self repeats the key, as service.self does. */
struct datagram_name {
	struct datagram_key self;
	struct place original;
	__u32 pad;
};

/* More services than this on one socket: the oldest is forgotten. */
#define DATAGRAM_SERVICES 4096

/* The services that an unconnected socket sends to, by datagram.next. */
struct datagram_list {
	struct bpf_spin_lock lock; /* guards all that follows */
	__u32 count;
	struct place oldest, newest;
};

/* The client side of a steered connection; its destination is the workload's own. */
struct origin_key {
	__u64 netns_cookie;
	union addr client;
	__u16 client_port;   /* host byte order */
	__u16 listener_port; /* host byte order */
	__u32 pad;
};

/* Where a steered connection was going. */
struct origin {
	union addr addr;
	__be16 port;
	__u16 pad;
	__u32 workload;
	__u64 cookie; /* of the client's socket */
};

/* A connection that the node's own processes are opening. */
struct tuple {
	union addr local;
	union addr remote;
	__be16 local_port;
	__be16 remote_port;
};

/* In a value of inbound: nobody but the node proxy gets the connections. */
#define INBOUND_REQUIRED (1U << 31)

/* A workload's veth pair, by the number of the node's end. */
struct interface {
	__u64 told; /* ktime of its last event */
	__u32 workload;
	__u8 mac[6]; /* of the workload's end */
	__u16 pad;
	union addr addr4;
	union addr addr6;
	__u32 pad2;
};

/* How to reach a workload of this node. */
struct neighbour {
	__u32 ifindex;	  /* the node's end of its veth pair */
	__u8 mac[6];	  /* of the workload's end */
	__u8 host_mac[6]; /* of the node's end */
};

/* What became of packets at the node's ends of veth pairs: indexes into packets. */
enum packet_count {
	PACKET_REDIRECTED = 0, /* straight into the other workload's namespace */
	PACKET_STACK = 1,      /* to the node's network stack */
	PACKET_SPOOFED = 2,    /* dropped: the source is not the workload's */
	PACKET_UNEXPECTED = 3, /* dropped: no IPv4, IPv6 or ARP */
	PACKET_COUNTS = 4,
};

/* A connection that an endpoint's end leaves without one. */
struct victim {
	union addr original;
	union addr chosen;
	__be16 original_port;
	__be16 chosen_port;
	__u32 protocol;
};

/* A socket that was ended. */
struct ended {
	struct victim victim;
	__u32 workload;
	__be16 source_port;
	__u16 family;
};

struct event {
	__u64 time; /* ktime */
	__u64 netns_cookie;
	__u64 socket_cookie;
	union addr source;
	union addr original;
	union addr chosen;
	__be16 source_port; /* zero: not known yet */
	__be16 original_port;
	__be16 chosen_port;
	__u16 reason;
	__u32 workload;
	__u32 service; /* service.id */
	__u8 verdict;
	__u8 hook;
	__u8 family;
	__u8 protocol;
	__u32 pad;
};

_Static_assert(sizeof(struct frontend) == 20, "frontend has no hidden padding");
_Static_assert(sizeof(struct workload) == 40, "workload has no hidden padding");
_Static_assert(sizeof(struct service) == 40, "service has no hidden padding");
_Static_assert(sizeof(struct endpoint) == 28, "endpoint has no hidden padding");
_Static_assert(sizeof(struct member_key) == 24, "member_key has no hidden padding");
_Static_assert(sizeof(struct affinity_key) == 16, "affinity_key has no hidden padding");
_Static_assert(sizeof(struct affinity) == 32, "affinity has no hidden padding");
_Static_assert(sizeof(struct peer) == 44, "peer has no hidden padding");
_Static_assert(sizeof(struct kept) == 28, "kept has no hidden padding");
_Static_assert(sizeof(struct datagram_key) == 32, "datagram_key has no hidden padding");
_Static_assert(sizeof(struct datagram) == 56, "datagram has no hidden padding");
_Static_assert(sizeof(struct datagram_name) == 56, "datagram_name has no hidden padding");
_Static_assert(sizeof(struct datagram_list) == 48, "datagram_list has no hidden padding");
_Static_assert(sizeof(struct origin_key) == 32, "origin_key has no hidden padding");
_Static_assert(sizeof(struct origin) == 32, "origin has no hidden padding");
_Static_assert(sizeof(struct tuple) == 36, "tuple has no hidden padding");
_Static_assert(sizeof(struct interface) == 56, "interface has no hidden padding");
_Static_assert(sizeof(struct neighbour) == 16, "neighbour has no hidden padding");
_Static_assert(sizeof(struct victim) == 40, "victim has no hidden padding");
_Static_assert(sizeof(struct ended) == 48, "ended has no hidden padding");
_Static_assert(sizeof(struct event) == 96, "event has no hidden padding");

/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * All maps. User space sets the sizes and pins those marked so; a pinned name carries
 * LAYOUT_VERSION, which must grow with any change of a key, a value or their meaning.
 */
#pragma once

#include "peers.h"
#include "types.h"

enum layout {
	LAYOUT_VERSION = 3,
};

/* Network namespace cookie -> workload. Written by steer. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct workload);
} workloads SEC(".maps");

/* Address of a workload of this node -> its index. Written by steer. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, union addr);
	__type(value, __u32);
} addresses SEC(".maps");

/*
 * Address of a workload, on whichever node; the value means nothing. Written by steer; when full,
 * the rest can be dialled, and only their own node refuses the capture ports. Pinned.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, union addr);
	__type(value, __u32);
} mesh_addresses SEC(".maps");

/* VIP, port and protocol -> service. Written by service. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend);
	__type(value, struct service);
} services SEC(".maps");

/* Service, generation and slot -> endpoint. Written by service. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct endpoint_key);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/*
 * The endpoints of services whose clients keep one (affinity or UDP), by address -> enum
 * membership. Written by service. Pinned.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct member_key);
	__type(value, __u32);
} members SEC(".maps");

/* Client and service -> the endpoint it keeps. Written here; when full, the oldest
 * goes and its client may get another endpoint. Pinned.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

/*
 * A UDP socket and a service -> the endpoint that it has of it. Written by sendmsg, deleted by
 * sock_release; when full, sending to a further service is refused. Pinned.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct datagram_key);
	__type(value, struct datagram);
} datagrams SEC(".maps");

/* A UDP socket and an endpoint -> the service that it is of. Written and deleted with datagrams. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct datagram_key);
	__type(value, struct datagram_name);
} datagram_names SEC(".maps");

/* A UDP socket -> which of datagrams are its own. Written by sendmsg; goes with the socket. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct datagram_list);
} datagram_lists SEC(".maps");

/*
 * The client's tuple -> original destination, from the SYN until the node proxy's
 * socket is established. Written by sockops; when full the connection is refused by the
 * node proxy, which finds no record. Pinned.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct origin_key);
	__type(value, struct origin);
} pending SEC(".maps");

/* A socket that the node proxy accepted -> original destination. Written by sockops, read by the node proxy. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct origin);
} origins SEC(".maps");

/* ktime at which the node proxy last said that it accepts. Written by the node proxy. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} heartbeat SEC(".maps");

/* A Gateway's address, port and protocol -> index into gateway_sockets. Written by steer. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend);
	__type(value, __u32);
} gateways SEC(".maps");

/* Listening sockets in the node's namespace. A slot empties itself when its socket closes. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} gateway_sockets SEC(".maps");

/*
 * A workload's own address and port -> index into inbound_sockets, perhaps with INBOUND_REQUIRED.
 * Written by steer. Pinned.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend);
	__type(value, __u32);
} inbound SEC(".maps");

/* Listening sockets in workloads' namespaces. A slot empties itself when its socket closes. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} inbound_sockets SEC(".maps");

/*
 * Connections that the node's own processes are opening to an address in inbound, until the
 * handshake ends. Written by sockops; when full, the oldest goes and meets the
 * inbound listener. Pinned.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct tuple);
	__type(value, __u32);
} own_tuples SEC(".maps");

/* The node's end of a veth pair -> whose it is. Written by forward. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct interface);
} interfaces SEC(".maps");

/* Address of a workload of this node -> how to reach it. Written by forward. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, union addr);
	__type(value, struct neighbour);
} neighbours SEC(".maps");

/* enum packet_count -> how many. Written here, read by forward. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PACKET_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} packets SEC(".maps");

/* Events for user space; when full they are counted in lost. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

/* How many events found no room. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Addresses in their IPv6 shape. */
#pragma once

#include "types.h"

static __always_inline void addr_from4(union addr *a, __be32 ip4)
{
	a->word[0] = 0;
	a->word[1] = 0;
	a->word[2] = bpf_htonl(0xffff);
	a->word[3] = ip4;
}

static __always_inline bool addr_is4(const union addr *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == bpf_htonl(0xffff);
}

static __always_inline bool addr_equal(const union addr *a, const union addr *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

static __always_inline bool addr_is_zero(const union addr *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

/* addr_is_here - whether a destination always means the sender's own namespace. */
static __always_inline bool addr_is_here(const union addr *a)
{
	if (addr_is4(a))
		return a->word[3] == 0 ||
		       (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !(a->word[0] | a->word[1] | a->word[2]) &&
	       (a->word[3] == 0 || a->word[3] == bpf_htonl(1));
}

/* is_outbound_port - whether a port (host byte order) takes steered connections. */
static __always_inline bool is_outbound_port(__u32 port)
{
	return port >= PORT_OUTBOUND && port <= PORT_OUTBOUND_LAST;
}

/* is_capture_port - whether a port (network byte order) is the node proxy's. */
static __always_inline bool is_capture_port(__be16 port)
{
	return is_outbound_port(bpf_ntohs(port)) || port == bpf_htons(PORT_INBOUND) ||
	       port == bpf_htons(PORT_TUNNEL) || port == bpf_htons(PORT_DNS);
}

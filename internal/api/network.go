package api

import (
	"errors"
	"net/netip"
	"strings"
)

// Network is an address range. In text, a single address means only that address.
type Network struct{ netip.Prefix }

// UnmarshalText reads "10.0.0.0/8" or "10.0.0.7".
func (n *Network) UnmarshalText(text []byte) error {
	s := string(text)
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return errors.New("allowed_ips: an entry is not a network like 10.0.0.0/8")
		}
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				return errors.New("allowed_ips: write IPv4 networks like 10.0.0.0/8")
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		n.Prefix = p.Masked()
		return nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return errors.New("allowed_ips: an entry is not an address like 10.0.0.7")
	}
	a = a.Unmap()
	n.Prefix = netip.PrefixFrom(a, a.BitLen())
	return nil
}

// SocketPeers stands for the peers of a Unix socket in a list of networks, because they have no address.
var SocketPeers = netip.Prefix{}

package api

import "net/netip"

// AddressDetail is how much of a client's address is shown.
type AddressDetail string

// The zero AddressDetail is AddressFull.
const (
	AddressFull   AddressDetail = "full"
	AddressPrefix AddressDetail = "prefix" // the first 24 bits of IPv4, 48 of IPv6
	AddressNone   AddressDetail = "none"
)

// Show returns the address in this detail, or "" for AddressNone. The peers of a Unix socket have no address and are "unknown".
func (d AddressDetail) Show(a netip.Addr) string {
	if !a.IsValid() {
		return "unknown"
	}
	switch d {
	case AddressNone:
		return ""
	case AddressPrefix:
		a = a.Unmap().WithZone("")
		bits := 48
		if a.Is4() {
			bits = 24
		}
		if p, err := a.Prefix(bits); err == nil {
			return p.String()
		}
		return ""
	}
	return a.String()
}

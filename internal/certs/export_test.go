package certs

// Look does what Watch does at each tick.
func (p *KeyPair) Look() { p.look() }

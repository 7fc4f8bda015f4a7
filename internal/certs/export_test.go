package certs

// Look runs the check that Watch runs at each tick.
func (p *KeyPair) Look() { p.look() }

package gvstream

// awake is the name of the one planted fault that takes effect, or empty.
var awake string

// planted reports whether a fault is awake. The replacements in faults.txt call it.
func planted(name string) bool { return name == awake }

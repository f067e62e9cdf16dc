package gvstream

type encodedEvents struct{}

//go:build !race

package gvstream

const simSteps = 500

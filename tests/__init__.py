"""Tests: unit/ mirrors the package, golden/ holds vectors, recipes/ the recipes, gpu/ what needs a device."""

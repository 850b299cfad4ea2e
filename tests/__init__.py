"""Tests: unit/ mirrors the package, golden/ holds vectors to reproduce, recipes/ the recipes, gpu/ what needs a device."""

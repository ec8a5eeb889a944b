"""What a bundle is and how it is served: no torch, no training code, anywhere below this package."""
